"""
Counts of injected faults, and the table that they become: `make faults` runs the tests and rewrites the table.

    python tests/testing/faults.py COUNTS.jsonl docs/reliability.md
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

START, END = "<!-- faults: made by `make faults` -->\n", "<!-- end of faults -->\n"


class Faults(NamedTuple):
    """Where a test says how many faults it injected."""

    write: Callable[[dict], None]
    test: str

    def count(self, kind: str, tried: int, survived: int, note: str = "") -> None:
        """
        Adds to one line of the table. Called before the assertion that would end the test, so that what is lost is
        counted, too.

        Args:
            kind: what was done, as the table shows it: "killed while a checkpoint is written". Numbers of the same
                kind are added up.
            tried: how often it was done, or how many inputs were given.
            survived: after how many of them all was as promised; the rest is lost.
            note: what was promised, or what the numbers were measured on.
        """
        assert 0 <= survived <= tried, (kind, tried, survived)
        self.write({"kind": kind, "tried": tried, "survived": survived, "note": note, "test": self.test})


def table(rows: list[dict]) -> str:
    """Markdown: a line for each kind of fault, in alphabetical order, and their sum."""
    kinds: dict[str, dict] = {}
    for row in rows:
        kind = kinds.setdefault(row["kind"], {"tried": 0, "survived": 0, "notes": {}})
        kind["tried"] += row["tried"]
        kind["survived"] += row["survived"]
        kind["notes"][row["note"]] = None  # each once, in their order
    lines = ["| fault | tried | survived | lost | note |", "| --- | ---: | ---: | ---: | --- |"]
    sums = {"tried": sum(kind["tried"] for kind in kinds.values()), "notes": {}}
    sums["survived"] = sum(kind["survived"] for kind in kinds.values())
    for name, kind in [*sorted(kinds.items()), ("**all**", sums)]:
        lost, note = kind["tried"] - kind["survived"], "; ".join(filter(None, kind["notes"]))
        lines.append(f"| {name} | {kind['tried']:,} | {kind['survived']:,} | {lost:,} | {note} |")
    return "\n".join(lines) + "\n"


def main(counts: str, page: str) -> None:
    rows = [json.loads(line) for line in Path(counts).read_text().splitlines()]
    before, rest = Path(page).read_text().split(START)
    after = rest.split(END)[1]
    Path(page).write_text(f"{before}{START}\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main(*sys.argv[1:])
