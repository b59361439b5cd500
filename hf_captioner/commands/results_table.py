r"""
Puts what `make results` measured where it can be read, `model_cards/`.

    python training/results_table.py --results outputs/results --data flickr8k/validation.parquet

Writes, for every row (a folder in `results` with an evaluation), its card without pictures and without what is said of
loading it; `flickr8k_results.json` with the rows' metrics, intervals, checks and learning curves, and with paired
bootstrap tests (Holm's correction) between each row and the one that it differs from in one respect; and
`flickr8k_results.png`, quality against training time. Prints the table and the tests in Markdown. Rows that are not in
`results` stay as the file has them, so that the table can be made in parts. With other seeds, which lie in folders of
their own,

    make results ROWS=additive SEED=1 RESULTS=outputs/seed1
    python training/results_table.py --results outputs/results --data ... --more_seeds outputs/seed1 outputs/seed2

it also keeps and prints how much a row changes with its seed.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from huggingface_hub import ModelCard

from ..errors import InputError
from ..metrics import compare_scores, score_captions
from ..metrics.comparison import Difference, holm
from . import run
from .captioning import write_json
from .inputs import read_captions
from .parsing import CommandParser

# From each row, in the order of the table, to the one that it is tested against.
ROWS = {
    "show_and_tell_lstm": None,
    "show_and_tell_gru": "show_and_tell_lstm",
    "additive": "show_and_tell_lstm",
    "dot": "additive",
    "scaled_dot": "dot",
    "multi_head": "additive",
    "hard": "additive",
    "hard_multi_head": "multi_head",
    "cnn_transformer": "additive",
    "vit_transformer": "cnn_transformer",
    "distilled": "additive",
    "additive_scst": "additive",
    "cnn_transformer_scst": "cnn_transformer",
    "unfrozen": "additive",
    "unfrozen_scst": "unfrozen",
}
REPORT = Path("evaluation", "metrics.json")  # of a row, what `evaluate` wrote
TESTED = ("bleu_4", "cider_d")
SHOWN = ("bleu_4", "cider_d", "meteor_1.5")
# Of a card, the parts that only make sense beside the weights and the photographs.
LEFT_OUT = ("Use", "Examples")


@dataclass
class Arguments:
    """What was measured, on what, and where it goes."""

    results: str = field(metadata={"help": "folder that `make results` wrote"})
    data: str = field(metadata={"help": "the images with captions that it measured on"})
    more_seeds: list[str] = field(default_factory=list, metadata={"help": "folders like `results`, of other seeds"})
    output_dir: str = field(default="model_cards", metadata={"help": "folder for cards, figures and picture"})
    resamples: int = field(default=10_000, metadata={"help": "number of resampled corpora"})

    def __post_init__(self):
        if self.resamples < 1:
            raise InputError(f"`resamples` must be at least 1, got {self.resamples}")


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    results, folder = Path(args.results), Path(args.output_dir)
    names = [name for name in ROWS if (results / name / REPORT).exists()]
    if not names:
        raise InputError(f"`results` must hold rows that were measured ({', '.join(ROWS)}), got none in {results}")
    references = read_captions(args.data, check_images=False)["captions"][:]
    for other in map(Path, args.more_seeds):
        if not any((other / name / REPORT).exists() for name in names):
            raise InputError(f"`more_seeds` must hold rows of `results` that were measured, got none in {other}")
    tests = differences(results, names, references, args.resamples)
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "flickr8k_results.json"
    known = json.loads(figures.read_text())["rows"] if figures.exists() else {}
    rows = known | {name: measured(results / name) for name in names}
    rows = {name: rows[name] for name in ROWS if name in rows}
    for name in names:
        reports = [Path(other, name, REPORT) for other in args.more_seeds]
        seeds = [figures_of(json.loads(report.read_text())) for report in reports if report.exists()]
        rows[name]["more_seeds"] = seeds or known.get(name, {}).get("more_seeds", [])
        rows[name]["tests"] = {metric: asdict(test) for metric, test in tests.get(name, {}).items()}
        (folder / f"flickr8k_{name}.md").write_text(card(results, name, args.data), "utf-8")
    write_json(figures, {"rows": rows, "resamples": args.resamples})
    plot(rows, folder / "flickr8k_results.png")
    print(table(rows))


def figures_of(report: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation that are numbers."""
    return {name: value for name, value in report["metrics"].items() if not isinstance(value, str)}


def measured(folder: Path) -> dict[str, Any]:
    """What a row's evaluation and training left: metrics, intervals, checks, minutes, and the curve over steps."""
    report = json.loads((folder / REPORT).read_text())
    state = json.loads((folder / "trainer_state.json").read_text())
    seconds = next(line["train_runtime"] for line in state["log_history"] if "train_runtime" in line)
    return {
        "metrics": figures_of(report),
        "intervals_95": report["intervals_95"],
        "checks": report["checks"],
        "num_images": report["setting"]["num_images"],
        "steps": state["global_step"],
        "minutes": seconds / 60,
        "curve": [
            {"step": line["step"], "cider_d": line["eval_cider_d"]}
            for line in state["log_history"]
            if "eval_cider_d" in line
        ],
    }


def differences(
    results: Path, names: list[str], references: list[list[str]], resamples: int
) -> dict[str, dict[str, Difference]]:
    """The tests of the rows whose neighbour is there; Holm's correction is over the rows, within one metric."""
    scores = {}
    for name in names:
        said = json.loads((results / name / "evaluation" / "captions.json").read_text())
        if [entry["image_id"] for entry in said] != list(range(len(references))):
            raise InputError(f"`data` must be what {name} was measured on, got other images")
        scores[name] = score_captions([entry["caption"] for entry in said], references, TESTED)[0]
    found = {}
    for name in names:
        other = ROWS[name]
        if other in scores:
            pair = {name: scores[name], other: scores[other]}
            found[name] = compare_scores(pair, resamples)[name, other]
    for metric in TESTED:
        corrected = holm([tests[metric].p for tests in found.values()])
        for tests, p in zip(found.values(), corrected, strict=True):
            tests[metric] = replace(tests[metric], p_holm=p)
    return found


def card(results: Path, name: str, data: str) -> str:
    """A row's card for a folder without weights and photographs, and without the paths of this machine."""
    text = ModelCard.load(results / name / "README.md", ignore_metadata_errors=True).text
    for part in LEFT_OUT:
        text = re.sub(rf"^## {part}\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    text = text.replace(str(results), "outputs/results")
    home = str(Path(data).parent.parent)  # of flickr8k/validation.parquet
    text = text if home == "." else text.replace(home, "DATA")
    return text.strip() + "\n"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(rows: dict[str, dict]) -> str:
    """The rows, their tests and what several seeds of a row have in common, times 100."""
    lines = ["| row | BLEU-4 | CIDEr-D | METEOR 1.5 | different captions | minutes |", "| --- |" + " --- |" * 5]
    for name, row in rows.items():
        cells = []
        for metric in SHOWN:
            low, high = row["intervals_95"].get(metric, (None, None))
            interval = "" if low is None or metric not in TESTED else f" ({percent(low)} to {percent(high)})"
            cells.append(percent(row["metrics"][metric]) + interval if metric in row["metrics"] else "")
        cells += [f"{percent(row['checks']['unique_ratio'])} %", f"{row['minutes']:.0f}"]
        lines.append(f"| [{name}](flickr8k_{name}.md) | {' | '.join(cells)} |")
    lines += ["", "| row | against | BLEU-4 | p (Holm) | CIDEr-D | p (Holm) |", "| --- |" + " --- |" * 5]
    for name, row in rows.items():
        if row["tests"]:
            cells = []
            for metric in TESTED:
                test = row["tests"][metric]
                low, high = (f"{100 * end:+.1f}" for end in test["interval"])
                cells += [f"{100 * (test['first'] - test['second']):+.1f} ({low} to {high})", f"{test['p_holm']:.4f}"]
            lines.append(f"| {name} | {ROWS[name]} | {' | '.join(cells)} |")
    several = {name: [row["metrics"], *row["more_seeds"]] for name, row in rows.items() if row.get("more_seeds")}
    if several:
        lines += [
            "",
            "| row | seeds | BLEU-4, mean (least to most) | CIDEr-D, mean (least to most) |",
            "| --- |" + " --- |" * 3,
        ]
    for name, seeds in several.items():
        cells = []
        for metric in TESTED:
            values = [seed[metric] for seed in seeds]
            cells.append(f"{percent(mean(values))} ({percent(min(values))} to {percent(max(values))})")
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: dict[str, dict], path: Path) -> None:
    """CIDEr-D of greedy captions against minutes, of which every step is taken to need the same share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, row) in enumerate(rows.items()):
        minutes = [row["minutes"] * point["step"] / row["steps"] for point in row["curve"]]
        style = ("-", "--", ":")[number // 10]  # matplotlib has ten colours
        axes.plot(minutes, [100 * point["cider_d"] for point in row["curve"]], style, marker=".", label=name)
    axes.set(xlabel="minutes of training", ylabel="CIDEr-D of greedy captions, x 100")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main)
