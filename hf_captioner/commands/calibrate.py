r"""
Makes a captioner's confidence believable, and lets it abstain on images unlike those that it knows.

    hf-captioner calibrate --model outputs/flickr8k --data flickr8k/validation.parquet

The images must be like those that it is made for, and not those that it was trained on; a few hundred are enough. Half
of them (those in even places) are used to find

- the temperature under which the probability of a word comes next to how often such words are found in a reference,
- mean and covariance of what the captioner sees of such images,

and the others to choose the least score that a share of `--coverage` of them reach, and to measure. All three are
saved in the captioner's folder: its probabilities and scores are calibrated wherever it is loaded, and
`hf-captioner caption` abstains where the score is below the least. What it says of an image does not change.

What was measured goes to `calibration.json` in the folder, for the card: the calibration error before and after, how
well the score tells photographs from generated images that are none, and how many photographs are refused, whole or
distorted.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..data.non_photographs import NON_PHOTOGRAPHS, non_photographs
from ..errors import InputError
from ..explain.calibration import TEMPERATURES, auroc, expected_calibration_error, fit_familiarity, fit_temperature
from ..files import replacing
from . import run
from .confidence import DEFINITIONS, Caption, read_confidence, right_words
from .inputs import SourceArguments, read_captioner, read_captions, refusing
from .parsing import CommandParser

WEIGHTS = "model.safetensors"
ROWS = 100  # generated images of a kind
DISTORTED = 50  # photographs


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=10)
    return Image.open(buffer)


DISTORTIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 10": _jpeg,
    "blur, 1/100 of the width": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 100)),
    "grey": lambda image: image.convert("L"),
    "turned by 15 degrees": lambda image: image.rotate(15, Image.Resampling.BICUBIC),
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "dark, 3/10 of the light": lambda image: image.point(lambda value: value * 3 // 10),
}


@dataclass
class Arguments:
    """Which captioner, and on what."""

    model: str = field(metadata={"help": "folder of a trained captioner with its processor"})
    data: str = field(metadata={"help": "images and captions that it was not trained on: a table, a folder..."})
    split: str | None = field(default=None, metadata={"help": "name of the split, if the source has several"})
    coverage: float = field(default=0.99, metadata={"help": "share of such images that are to be captioned"})
    batch_size: int = field(default=16, metadata={"help": "images at a time"})

    def __post_init__(self):
        if not 0 < self.coverage <= 1:
            raise InputError(f"`coverage` must be in (0, 1], got {self.coverage}")
        if self.batch_size < 1:
            raise InputError(f"`batch_size` must be at least 1, got {self.batch_size}")


def main(argv: list[str] | None = None) -> None:
    args, source = CommandParser(Arguments, SourceArguments, description=__doc__).parse(argv)
    folder = Path(args.model)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"`model` must be a folder with {WEIGHTS}, got {args.model}")
    dataset = read_captions(args.data, args.split, check_images=False, **source.source_options())
    model, processor = read_captioner(args.model)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def read(images: Iterable[Image.Image], rows: int, what: str, *temperatures: float) -> list[Caption]:
        found = read_confidence(model, processor, images, temperatures, batch_size=args.batch_size)
        return list(tqdm(found, total=rows, desc=f"captioning {what}", unit="image"))

    captions = read((row["image"] for row in dataset), len(dataset), "the data", *TEMPERATURES)
    right = [right_words(caption, texts) for caption, texts in zip(captions, dataset["captions"], strict=True)]
    half = slice(0, None, 2), slice(1, None, 2)
    fitted, checked = ([*zip(captions[part], right[part], strict=True)] for part in half)
    temperature = fit_temperature(*table(fitted))
    at, one = np.abs(TEMPERATURES - temperature).argmin(), np.abs(TEMPERATURES - 1).argmin()

    regions = torch.stack([caption.mean_region for caption in captions])
    familiarity = fit_familiarity(regions[half[0]], regions[half[1]], args.coverage)
    with safe_open(folder / WEIGHTS, "pt") as file:
        types = {file.get_tensor(name).dtype for name in file.keys() if not name.startswith("familiarity.")}
    dtype = max((kind for kind in types if kind.is_floating_point), key=lambda kind: kind.itemsize)
    familiarity.to(dtype).float()  # as they will be read

    def scores(captions: list[Caption], column: int) -> np.ndarray:
        known = familiarity(torch.stack([caption.mean_region for caption in captions])[:, None])
        return np.array([caption.scores[column] for caption in captions]) * known.numpy()

    photographs = captions[half[1]]
    reached = scores(photographs, at)
    least = float(np.quantile(reached, 1 - args.coverage))
    probabilities, outcome = table(checked)
    report = {
        "data": args.data,
        "split": args.split,
        "num_images": len(captions),
        "temperature": temperature,
        "coverage": args.coverage,
        "min_score": least,
        "words": {
            "count": len(outcome),
            "right": float(np.mean(outcome)),
            "ece_before": expected_calibration_error(probabilities[:, one], outcome),
            "ece": expected_calibration_error(probabilities[:, at], outcome),
        },
        "abstained": {"photographs": float((reached < least).mean())},
        "auroc": {},
        "auroc_of_words_alone": {},
        "definitions": DEFINITIONS,
    }
    alone = [caption.scores[at] for caption in photographs]
    for kind in NON_PHOTOGRAPHS:
        others = read(non_photographs(kind, ROWS), ROWS, kind, temperature)
        found = scores(others, 0)
        report["abstained"][kind] = float((found < least).mean())
        report["auroc"][kind] = auroc(reached, found)
        report["auroc_of_words_alone"][kind] = auroc(alone, [caption.scores[0] for caption in others])
    some = [image.convert("RGB") for image in dataset[range(1, min(2 * DISTORTED, len(dataset)), 2)]["image"]]
    for name, distort in DISTORTIONS.items():
        found = scores(read(map(distort, some), len(some), f"photographs, {name}", temperature), 0)
        report["abstained"][f"photographs, {name}"] = float((found < least).mean())

    save(folder, temperature, least, {name: tensor.to(dtype) for name, tensor in familiarity.state_dict().items()})
    with replacing(folder / "calibration.json") as part:
        part.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    show(report)
    print(f"\ncalibrated: {folder}")


def table(captions: list[tuple[Caption, list[bool]]]) -> tuple[np.ndarray, list[bool]]:
    """All words of all captions: (words, temperatures), and whether they are right."""
    return (
        np.concatenate([caption.probabilities for caption, _ in captions]),
        [one for _, words in captions for one in words],
    )


def save(folder: Path, temperature: float, min_score: float, statistics: dict[str, torch.Tensor]) -> None:
    """Into the configuration and the weights, which are otherwise left as they are, in their own precision."""
    with refusing(OSError, ValueError, what=f"`model` must be a folder that can be written, got {folder}: "):
        with safe_open(folder / WEIGHTS, "pt") as file:
            metadata = file.metadata()
        weights = {n: one for n, one in load_file(folder / WEIGHTS).items() if not n.startswith("familiarity.")}
        weights |= {f"familiarity.{name}": one.contiguous() for name, one in statistics.items()}
        config = json.loads((folder / "config.json").read_text("utf-8"))
        config |= {
            "score_temperature": temperature,
            "min_score": min_score,
            "familiarity_rank": len(statistics["directions"]),
        }
        with replacing(folder / WEIGHTS) as part:
            save_file(weights, part, metadata)
            shutil.copymode(folder / WEIGHTS, part)
        with replacing(folder / "config.json") as part:
            part.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def show(report: dict) -> None:
    words = report["words"]
    print(f"\ntemperature {report['temperature']:.3f}, least score {report['min_score']:.3f}")
    print(f"calibration error of words: {words['ece_before']:.3f} before, {words['ece']:.3f} after")
    for name, share in report["abstained"].items():
        area = f", AUROC {report['auroc'][name]:.3f}" if name in report["auroc"] else ""
        print(f"{name}: abstains on {100 * share:.1f} %{area}")


if __name__ == "__main__":
    run(main)
