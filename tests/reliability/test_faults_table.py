"""Counts of faults become one table."""

import json

from testing.faults import END, START, Faults, main


def test_counts_of_one_kind_are_added_and_the_page_around_them_stays(tmp_path):
    rows: list[dict] = []
    faults = Faults(rows.append, "test")
    faults.count("killed in a step", 4, 4, "same weights")
    faults.count("a full disk", 1200, 1199)
    faults.count("killed in a step", 2, 1, "same weights")
    counts, page = tmp_path / "counts.jsonl", tmp_path / "page.md"
    counts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.write_text(f"# Above\n{START}what was there{END}below\n")
    for _ in range(2):
        main(str(counts), str(page))
    assert page.read_text() == (
        f"# Above\n{START}\n"
        "| fault | tried | survived | lost | note |\n"
        "| --- | ---: | ---: | ---: | --- |\n"
        "| a full disk | 1,200 | 1,199 | 1 |  |\n"
        "| killed in a step | 6 | 5 | 1 | same weights |\n"
        "| **all** | 1,206 | 1,204 | 2 |  |\n"
        f"\n{END}below\n"
    )
