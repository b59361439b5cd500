"""Captions of a data set's images, for what measures them: a run that was stopped goes on, a bad image is a row."""

import hashlib
import json
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .. import CaptionerProcessor, __version__
from ..data.image_column import where
from ..data.image_files import read_ahead
from ..data.reading import decode_image, undecoded
from ..errors import InputError
from ..files import replacing
from ..models.image_reading import to_rgb
from ..models.machine_captioner import THREADS
from ..models.pipeline_captioner import needs_images
from ..models.tokenization_captioner import decode_captions
from ..sharing.card import weights_sha256
from .confidence import Caption, confidence_in
from .decoding_options import DecodingArguments
from .inputs import read_captioner

if TYPE_CHECKING:
    from .evaluate import Arguments

# What reads and resizes images, runs the model and makes words of its tokens: captions can change with their versions.
CAPTION_VERSIONS = ("hf_captioner", "torch", "transformers", "tokenizers", "pillow", "torchvision")


class Captioned(NamedTuple):
    """
    What became of a data set's images.

    Attributes:
        model, processor: the captioner.
        sets: the captions of each image, none of one that cannot be read.
        setting: that determines them.
        errors: by row why images could not be read.
        confidence: in each image's first caption, as far as it was read under the model's temperature.
    """

    model: PreTrainedModel
    processor: CaptionerProcessor
    sets: list[list[str]]
    setting: dict
    errors: dict[int, str]
    confidence: list[Caption | None]


def caption_images(
    args: "Arguments", decoding: DecodingArguments, dataset: Dataset, ids: list[int], state: PartialState
) -> Captioned:
    """Captions all images of a data set, those left out that an earlier run with the same setting captioned."""
    folder = Path(args.output_dir)
    model, processor = read_captioner(args.model, dtype=args.weights)
    model = model.to(state.device).eval()
    names = ("num_beams", "length_penalty", "no_repeat_ngram_size", "max_new_tokens")
    options = {name: getattr(args, name) for name in names}
    search = decoding.options(model, processor, state.process_index, **options)
    model.generation_config.update(**{name: value for name, value in options.items() if value is not None})

    setting = describe(args, dataset, ids, model, processor)
    used = {name: value for name, value in decoding.settings().items() if value is not None}
    setting |= {"decoding": used} if used else {}
    captions, _, _ = earlier_captions(folder, setting, ids)
    state.wait_for_everyone()  # all have read what is there before any adds to it
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "setting.json", setting)
    state.wait_for_everyone()
    missing = [row for row in range(len(dataset)) if row not in captions]
    mine = missing[state.process_index :: state.num_processes]
    write_captions(model, processor, dataset, mine, args, folder / "progress", state, search)
    state.wait_for_everyone()
    captions, errors, confidence = earlier_captions(folder, setting, ids)
    state.wait_for_everyone()  # all have read them before they are put in one place
    sets = [captions.get(row, []) for row in range(len(dataset))]
    if state.is_main_process:
        if decoding.num_return_sequences is not None:
            pairs = [(number, each) for number, each in zip(ids, sets, strict=True) if each]
            write_json(
                folder / "caption_sets.json", [{"image_id": number, "captions": each} for number, each in pairs]
            )
        (folder / "errors.json").unlink(missing_ok=True)
        if errors:
            named = [{"image_id": ids[row], "error": errors[row]} for row in sorted(errors)]
            write_json(folder / "errors.json", named)
        write_json(
            folder / "confidence.json", [{"image_id": ids[row]} | each for row, each in sorted(confidence.items())]
        )
        write_results(folder / "captions.json", ids, [texts[:1] for texts in sets])
        shutil.rmtree(folder / "progress", ignore_errors=True)
    temperature = float(model.config.score_temperature)
    known = {row: Caption.from_json(one) for row, one in confidence.items() if one["temperature"] == temperature}
    return Captioned(model, processor, sets, setting, errors, [known.get(row) for row in range(len(dataset))])


def describe(args: "Arguments", dataset: Dataset, ids: list[int], model, processor: CaptionerProcessor) -> dict:
    """
    The settings that determine the captions, and those that a comparison of metrics needs. Captions of an earlier run
    are used again only if all of them are the same.
    """
    generation = model.generation_config
    return {
        "model": args.model,
        "model_type": model.config.model_type,
        "weights_sha256": weights_sha256(Path(args.model)),
        "dtype": args.dtype,
        **describe_data(args, dataset, ids),
        "num_beams": generation.num_beams or 1,
        "length_penalty": 1.0 if generation.length_penalty is None else generation.length_penalty,
        "no_repeat_ngram_size": generation.no_repeat_ngram_size or 0,
        "max_new_tokens": generation.max_new_tokens,
        "generation_config": {k: v for k, v in generation.to_dict().items() if k != "transformers_version"},
        "processor_sha256": processor_sha256(processor),
        "versions": {name: versions()[name] for name in CAPTION_VERSIONS},
    }


def describe_data(args: "Arguments", dataset: Dataset, ids: list[int]) -> dict:
    references = dataset["captions"][:]
    return {
        "data": args.data,
        "split": args.split,
        "num_images": len(references),
        "num_references": sum(map(len, references)),
        "references_sha256": hashlib.sha256(json.dumps([ids, references]).encode()).hexdigest(),
    }


def processor_sha256(processor: CaptionerProcessor) -> str:
    """Of the settings files that the processor is saved as: preprocessing and vocabulary."""
    digest = hashlib.sha256()
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for path in sorted(Path(folder).glob("*.json")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "hf_captioner": __version__}
    libraries = ("torch", "transformers", "tokenizers", "pillow", "torchvision", "accelerate", "numpy", "nltk")
    for name in (*libraries, "pycocoevalcap"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def image_ids(dataset: Dataset, column: str | None) -> list[int]:
    """One integer for each image, as the COCO results format has it."""
    if column is None:
        column = "image_id" if "image_id" in dataset.column_names else None
    elif column not in dataset.column_names:
        raise InputError(f"`id_column` must be one of {', '.join(dataset.column_names)}, got {column!r}")
    ids = list(range(len(dataset))) if column is None else dataset[column][:]
    for row, number in enumerate(ids):
        if type(number) is not int:
            raise InputError(f"`{column}[{row}]` must be an integer, got {number!r}")
    if len(set(ids)) < len(ids):
        twice = next(number for number in ids if ids.count(number) > 1)
        raise InputError(f"`{column}` must be another for every image, got {twice} twice")
    return ids


def earlier_captions(
    folder: Path, setting: dict, ids: list[int]
) -> tuple[dict[int, list[str]], dict[int, str], dict[int, dict]]:
    """
    Each row's captions, the best first, that earlier runs with the same setting wrote, finished or interrupted; by row
    why an image could not be read in the interrupted ones; and by row the confidence in the first caption, with the
    temperature that it was read under.
    """
    if not (folder / "setting.json").exists():
        return {}, {}, {}
    before = json.loads((folder / "setting.json").read_text("utf-8"))
    if before != json.loads(json.dumps(setting)):
        name = next(name for name in {**before, **setting} if before.get(name) != setting.get(name))
        raise InputError(
            f"`output_dir` must be new or hold captions of the same setting, got {folder} with {name} = "
            f"{before.get(name)!r} instead of {setting.get(name)!r}"
        )
    captions: dict[int, list[str]] = {}
    errors: dict[int, str] = {}
    confidence: dict[int, dict] = {}
    rows = {number: row for row, number in enumerate(ids)}
    if (folder / "captions.json").exists():  # written last
        several = (folder / "caption_sets.json").exists()
        results = json.loads((folder / f"caption{'_sets' if several else 's'}.json").read_text("utf-8"))
        captions = {rows[each["image_id"]]: each["captions"] if several else [each["caption"]] for each in results}
    if (folder / "captions.json").exists() and (folder / "confidence.json").exists():
        for each in json.loads((folder / "confidence.json").read_text("utf-8")):
            confidence[rows[each.pop("image_id")]] = each
    for path in sorted((folder / "progress").glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            try:
                row, texts, error, sure = json.loads(line)
            except ValueError:  # the process was stopped while it wrote this line, its last
                continue
            if error is not None:
                errors[row] = error
            else:
                captions[row] = texts
                if sure is not None:
                    confidence[row] = sure
    return captions, {row: error for row, error in errors.items() if row not in captions}, confidence


class Pictures:
    """The pictures of a data set, or why there is none."""

    def __init__(self, dataset: Dataset, source: str):
        self.images, self.source = undecoded(dataset), source

    def __getitem__(self, row: int) -> Image.Image | str:
        try:
            return decode_image(self.images[row]["image"], where("image", row, self.source))
        except InputError as error:
            return str(error)


class Images:
    """The images of a data set, decoded when they are accessed, and seen as the captioner sees them."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: slice) -> list:
        return [to_rgb(image) for image in self.dataset[rows]["image"]]


@torch.inference_mode()
def write_captions(
    model, processor, dataset, rows: list[int], args: "Arguments", folder: Path, state, search: dict
) -> None:
    """
    Captions `rows` of the data set, with options of `generate()`; each batch is written as soon as it is there, as
    lines [row, captions, null, confidence], or [row, null, error, null] of an image that cannot be read.
    """
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    keep_images = needs_images(search.get("custom_generate"))

    def read(rows: list[int]) -> tuple:
        found = {}
        unread = []
        for row in rows:
            picture = pictures[row]
            if isinstance(picture, str):
                unread.append((row, None, picture, None))
            else:
                found[row] = to_rgb(picture)
        photos = list(found.values())
        pixels = processor(images=photos, return_tensors="pt")["pixel_values"] if photos else None
        return list(found), pixels, {"images": photos} if keep_images else {}, unread

    batches = [rows[start : start + args.batch_size] for start in range(0, len(rows), args.batch_size)]
    pictures = Pictures(dataset, args.data)
    threads = args.num_workers or THREADS
    temperature = float(model.config.score_temperature)
    progress = tqdm(total=len(rows), desc="captioning", unit="image", disable=not state.is_local_main_process)
    # a file of its own for each run and process: nothing is ever added to a file that may end in half a line
    with open(folder / f"{time.time_ns()}-{state.process_index}.jsonl", "w", encoding="utf-8") as file, progress:
        for _, batch in read_ahead(read, batches, threads, threads):
            if isinstance(batch, Exception):
                raise batch
            seen, pixels, more, lines = batch
            if seen:
                encoded = args.precision.encode(model, pixels.to(state.device, model.dtype))
                tokens = model.generate(encoder_outputs=encoded, **more, **search)
                captions = decode_captions(processor.tokenizer, tokens.cpu())
                each = len(captions) // len(seen)
                sets = [captions[place : place + each] for place in range(0, len(captions), each)]
                try:
                    sure = confidence_in(model, processor, encoded, captions[::each], (1.0, temperature))
                    known = [one.to_json() | {"temperature": temperature} for one in sure]
                except InputError:  # of tokens that do not tell where a word begins; the report says so
                    known = [None] * len(seen)
                lines += [(row, texts, None, one) for row, texts, one in zip(seen, sets, known, strict=True)]
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            progress.update(len(lines))


def write_results(path: Path, ids: list[int], sets: list[list[str]]) -> None:
    """The COCO results format."""
    pairs = zip(ids, sets, strict=True)
    write_json(path, [{"image_id": number, "caption": text} for number, texts in pairs for text in texts])


def write_json(path: Path, content) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
