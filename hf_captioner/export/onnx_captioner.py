"""An exported captioner, run by onnxruntime: no torch and no transformers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from ..errors import InputError
from ..models.image_reading import open_picture, to_rgb

ENCODER, DECODER = "encoder_model", "decoder_model"  # the Hub's names of such files
SUFFIXES = {False: ".onnx", True: "_quantized.onnx"}
NEVER = -1.0e9  # the score of a beam that is not there; finite, as in transformers


@dataclass(frozen=True)
class SearchSettings:
    """transformers' options of the same names; what a folder's generation_config.json says, or else the defaults."""

    num_beams: int = 1
    num_return_sequences: int = 1
    max_new_tokens: int = 20
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    suppress_tokens: Sequence[int] = ()

    def __post_init__(self):
        for name, least in (("num_beams", 1), ("num_return_sequences", 1), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"`{name}` must be a whole number from {least} on, got {value!r}")
        if self.num_return_sequences > self.num_beams:
            raise InputError(
                f"`num_return_sequences` must be at most `num_beams`, got {self.num_return_sequences} of "
                f"{self.num_beams}"
            )
        if self.early_stopping not in (True, False, "never"):
            raise InputError(f'`early_stopping` must be true, false or "never", got {self.early_stopping!r}')


@dataclass
class Found:
    """
    What a search returns for B images, k captions each.

    Args:
        tokens: (B, k, T), generated ones, padded behind the end.
        log_probs: (B, k, T), of the model itself, before suppressed tokens and the like, calibrated.
        attention: (B, k, T, L), weights of each token over the regions, if the captioner attends.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    attention: np.ndarray | None


class OnnxCaptioner:
    """
    Captions images with a captioner that `hf-captioner export` wrote, by onnxruntime, numpy, Pillow and tokenizers.

        captioner = OnnxCaptioner("outputs/exported")
        captioner("photo.jpg", num_beams=3)

    Args:
        folder: what `hf-captioner export` wrote.
        quantized: whether to take the int8 files. By default those that are there; of both the precise ones.
        providers: onnxruntime's execution providers, the processor by default.

    Raises:
        InputError: if the folder is not complete.

    Examples:
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.export import OnnxCaptioner
        >>> from hf_captioner.export.onnx_graphs import export_onnx
        >>> row = shapes_dataset(1)[0]
        >>> tokenizer = train_tokenizer(row["captions"])
        >>> processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> config = RnnCaptionerConfig(vision_config=vision, vocab_size=len(tokenizer), hidden_size=16)
        >>> model = RnnCaptionerForConditionalGeneration(config)  # or a trained one
        >>> model.generation_config.max_new_tokens = 8
        >>> folder = export_onnx(model, processor, "exported")  # what `hf-captioner export` does
        >>> [caption] = OnnxCaptioner(folder)(row["image"], num_beams=3)
        >>> sorted(caption)
        ['generated_text', 'score', 'tokens']
    """

    def __init__(
        self,
        folder: str | Path,
        quantized: bool | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ):
        self.folder = Path(folder)
        if quantized is None:
            quantized = not (self.folder / "onnx" / f"{ENCODER}{SUFFIXES[False]}").is_file()
        session = onnxruntime.SessionOptions()
        session.add_session_config_entry(
            "session.disable_quant_qdq", "1"
        )  # 8-bit filters are restored once, not always
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(
                self._file("onnx", f"{name}{SUFFIXES[quantized]}"), session, providers=list(providers)
            )
            for name in (ENCODER, DECODER)
        )
        self.tokenizer = Tokenizer.from_file(self._file("tokenizer.json"))
        self.tokenizer.encode_special_tokens = True  # "<eos>" in a prompt is text
        self.image_settings = json.loads(Path(self._file("processor_config.json")).read_text("utf-8"))[
            "image_processor"
        ]
        generation = json.loads(Path(self._file("generation_config.json")).read_text("utf-8"))
        self.start, self.pad = generation["decoder_start_token_id"], generation["pad_token_id"]
        ends = generation["eos_token_id"]
        self.ends = np.array(ends if isinstance(ends, list) else [ends])
        known = {field.name for field in fields(SearchSettings)}
        self.settings = SearchSettings(
            **{name: value for name, value in generation.items() if name in known and value is not None}
        )
        config = json.loads(Path(self._file("config.json")).read_text("utf-8"))
        self.temperature = config.get("score_temperature", 1.0)
        self.attends = any(output.name == "attention" for output in self.decoder.get_outputs())

    def _file(self, *parts: str) -> str:
        path = self.folder.joinpath(*parts)
        if not path.is_file():
            raise InputError(f"`folder` must be what `hf-captioner export` wrote, with {path.name}; got {self.folder}")
        return str(path)

    def __call__(
        self, images: Any, prompt: str = "", attention: bool = False, batch_size: int = 1, **options
    ) -> list[dict] | list[list[dict]]:
        """
        Args:
            images: a path, a PIL image or an array; or a list of these.
            prompt: text that every caption begins with.
            attention: whether to return attention maps.
            batch_size: images at a time.
            **options: of [`SearchSettings`], by default those of the folder.

        Returns:
            as [`ImageCaptioningPipeline`], with numpy arrays in place of tensors: for one image a list of
            `num_return_sequences` dictionaries with `generated_text`, `score`, `tokens` and, if asked for, `attention`
            (tokens, h, w); for a list of images a list of such lists.

        Raises:
            InputError: if an image cannot be read, an option is unknown or breaks its rule, or attention is asked of a
                captioner without it.
        """
        unknown = set(options) - {field.name for field in fields(SearchSettings)}
        if unknown:
            known = ", ".join(field.name for field in fields(SearchSettings))
            raise InputError(f"`{min(unknown)}` is not an option of an exported captioner, which has {known}")
        if attention and not self.attends:
            raise InputError("`attention` must be left out for a captioner that does not attend, got True")
        settings = replace(self.settings, **options)
        many = images if isinstance(images, (list, tuple)) else [images]
        captions: list[list[dict]] = []
        for start in range(0, len(many), batch_size):
            batch = enumerate(many[start : start + batch_size], start)
            pixels = np.stack([self.read(image, place) for place, image in batch])
            captions += self.caption_pixels(pixels, prompt, attention, settings)
        return captions if isinstance(images, (list, tuple)) else captions[0]

    def read(self, image: Any, place: int) -> np.ndarray:
        """As `pixels`, with an error that says which of the images it was."""
        try:
            return self.pixels(image)
        except (OSError, ValueError, TypeError) as error:
            name = str(image) if isinstance(image, (str, Path)) else f"images[{place}]"
            raise InputError(f"{name} must be an image that can be read: {error}") from error

    def pixels(self, image: Any) -> np.ndarray:
        """An image -> (3, H, W), as `CaptionerImageProcessor` makes it."""
        if isinstance(image, (str, Path)):
            image = open_picture(image)
        image, settings = to_rgb(image), self.image_settings
        if settings["do_resize"]:
            size = settings["size"]
            image = image.resize((size["width"], size["height"]), Image.Resampling(settings["resample"]))
        values = np.asarray(image, dtype=np.float32)
        if settings["do_rescale"]:
            values = values * np.float32(settings["rescale_factor"])
        if settings["do_normalize"]:
            mean, std = (np.array(settings[name], np.float32) for name in ("image_mean", "image_std"))
            values = (values - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def caption_pixels(
        self, pixels: np.ndarray, prompt: str, attention: bool, settings: SearchSettings
    ) -> list[list[dict]]:
        """Prepared images (B, 3, H, W) -> the captions of each."""
        encoded = dict(
            zip(
                (output.name for output in self.encoder.get_outputs()),
                self.encoder.run(None, {"pixel_values": pixels}),
                strict=True,
            )
        )
        grid = encoded.pop("grid").tolist()
        familiarity = encoded.pop("familiarity", None)
        words = self.tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
        found = self.search(encoded, [self.start, *words], settings)
        return [
            [
                self._caption(words, found, image, row, grid if attention else None, familiarity)
                for row in range(found.tokens.shape[1])
            ]
            for image in range(len(pixels))
        ]

    def _caption(
        self,
        prompt: list[int],
        found: Found,
        image: int,
        row: int,
        grid: list[int] | None,
        familiarity: np.ndarray | None,
    ) -> dict:
        tokens = found.tokens[image, row]
        ended = np.isin(tokens, self.ends)
        real = (np.cumsum(ended) - ended == 0) & (tokens != self.pad)
        logs = found.log_probs[image, row, real]
        ids = tokens[real].tolist()
        caption: dict[str, Any] = {
            "generated_text": self.tokenizer.decode([*prompt, *ids], skip_special_tokens=True).strip(),
            "score": float(np.exp(logs.mean())),
            "tokens": [
                {"token": self._text(token), "probability": float(np.exp(log))}
                for token, log in zip(ids, logs, strict=True)
            ],
        }
        if familiarity is not None:
            caption["familiarity"] = float(familiarity[image])
            caption["score"] *= caption["familiarity"]
        if grid is not None:
            assert found.attention is not None
            # Prefix tokens, which have no place in the grid, stand in front of the regions that do.
            caption["attention"] = found.attention[image, row, real][:, -grid[0] * grid[1] :].reshape(-1, *grid)
        return caption

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token]).strip() or self.tokenizer.id_to_token(token) or ""

    def search(self, encoded: dict[str, np.ndarray], prompt: list[int], settings: SearchSettings) -> Found:
        """
        Greedy search with one beam, and beam search as transformers does it with several.

        Args:
            encoded: the encoder's outputs: `state.*`, where the decoder begins (B, 1, ...), and what stays the same
                for all words of an image (B, ...).
            prompt: the start token and what every caption begins with.
            settings: of the search.
        """
        images, beams = len(next(iter(encoded.values()))), settings.num_beams
        states = {name: value for name, value in encoded.items() if name.startswith("state.")}
        fixed = {name: value for name, value in encoded.items() if name not in states}
        states = {name: np.repeat(value, beams, axis=1) for name, value in states.items()}
        names = [output.name for output in self.decoder.get_outputs()]

        def step(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            """Of the last token (B, k): logits (B, k, vocabulary), and weights over the regions."""
            nonlocal states
            outputs = dict(zip(names, self.decoder.run(None, {"input_ids": tokens, **fixed, **states}), strict=True))
            states = {name: outputs[name.replace("state.", "new_state.")] for name in states}
            return outputs["logits"], outputs.get("attention")

        for token in prompt[:-1]:
            step(np.full((images, beams), token))
        length, whole = len(prompt), len(prompt) + settings.max_new_tokens
        sequences = np.full((images, beams, whole), self.pad)
        sequences[..., :length] = prompt
        words = np.zeros((images, beams, settings.max_new_tokens), np.float32)  # log probabilities of the model
        maps: np.ndarray | None = None
        # All beams begin alike, so the first alone counts at first.
        scores = np.zeros((images, beams), np.float32)
        scores[:, 1:] = NEVER
        done = {"sequences": sequences, "words": words}
        done_scores, is_done = np.full_like(scores, NEVER), np.zeros_like(scores, bool)
        still_open = np.ones((images, 1), bool)  # can a running beam still be among the best?
        keep = 1 if beams == 1 else (1 + max(1, len(self.ends))) * beams
        first = np.arange(keep) < beams

        for place in range(settings.max_new_tokens):
            logits, weights = step(sequences[..., length - 1])
            log_probs = _log_softmax(logits)
            shown = log_probs if self.temperature == 1 else _log_softmax(logits / np.float32(self.temperature))
            if weights is not None and maps is None:
                maps = np.zeros((*words.shape, weights.shape[-1]), np.float32)
                done["maps"] = maps
            allowed = log_probs + self._forbidden(sequences[..., :length], place, log_probs.shape, settings)
            total = (allowed + scores[..., None]).reshape(images, -1)
            chosen = _largest(total, keep)  # (B, K), best first
            chosen_scores = np.take_along_axis(total, chosen, 1)
            parents, tokens = np.divmod(chosen, log_probs.shape[-1])

            running = {"sequences": _take(sequences, parents), "words": _take(words, parents)}
            running["sequences"][..., length] = tokens
            running["words"][..., place] = np.take_along_axis(shown.reshape(images, -1), chosen, 1)
            if maps is not None and weights is not None:
                running["maps"] = _take(maps, parents)
                running["maps"][..., place, :] = _take(weights, parents)
            hits = np.isin(tokens, self.ends) | (length + 1 == whole)

            # What has ended, if it was among the first, competes with what ended before.
            may_end = hits & first & still_open
            if settings.early_stopping is True:
                may_end &= ~is_done.all(1, keepdims=True)
            ended = np.where(may_end, chosen_scores / np.float32(place + 1) ** settings.length_penalty, -np.inf)
            both = np.concatenate([done_scores, ended], 1)
            order = _largest(both, beams)
            done_scores = np.take_along_axis(both, order, 1)
            is_done = np.take_along_axis(np.concatenate([is_done, may_end], 1), order, 1)
            done = {name: _take(np.concatenate([value, running[name]], 1), order) for name, value in done.items()}

            # The others go on, in their order.
            order = np.argsort(hits, axis=1, kind="stable")[:, :beams]
            sequences, words = _take(running["sequences"], order), _take(running["words"], order)
            maps = None if maps is None else _take(running["maps"], order)
            scores = np.take_along_axis(chosen_scores + hits * np.float32(NEVER), order, 1)
            parents = np.take_along_axis(parents, order, 1)
            states = {name: _take(value, parents) for name, value in states.items()}
            length += 1

            never = settings.early_stopping == "never" and settings.length_penalty > 0
            reach = (settings.max_new_tokens if never else place + 1) ** settings.length_penalty
            worst = np.where(is_done, done_scores.min(1, keepdims=True), NEVER)
            still_open &= (scores.max(1, keepdims=True) / reach > worst).any(1, keepdims=True)
            if beams == 1:  # greedy search ends where the most probable word is the end
                still_open &= ~is_done
            if not still_open.any() or (settings.early_stopping is True and is_done.all()) or hits.all():
                break

        found = {name: value[:, : settings.num_return_sequences] for name, value in done.items()}
        return Found(found["sequences"][..., len(prompt) :], found["words"], found.get("maps"))

    def _forbidden(self, sequences: np.ndarray, place: int, shape, settings: SearchSettings) -> np.ndarray:
        """Minus infinity for tokens that may not follow the sequences (B, k, t), 0 for others: (B, k, vocabulary)."""
        mask = np.zeros(shape, np.float32)
        mask[..., list(settings.suppress_tokens)] = -np.inf
        if place < settings.min_new_tokens:
            mask[..., self.ends] = -np.inf
        size = settings.no_repeat_ngram_size
        if 0 < size <= sequences.shape[-1]:
            last = sequences[..., sequences.shape[-1] - size + 1 :]
            for start in range(sequences.shape[-1] - size + 1):
                seen = (sequences[..., start : start + size - 1] == last).all(-1)
                image, row = np.nonzero(seen)
                mask[image, row, sequences[image, row, start + size - 1]] = -np.inf
        return mask


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Places (B, count) of the largest values (B, n), largest first; of equal ones the first."""
    if count < values.shape[1]:
        places = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    else:
        places = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)[:, :count]


def _take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(B, k, ...) and (B, n) -> (B, n, ...)"""
    return values[np.arange(len(values))[:, None], places]
