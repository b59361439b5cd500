"""A few images of the evaluation, the same ones each time: what a captioner in training says of them and looks at."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, ProcessorMixin

from ..data import CaptionCollator
from ..data.shapes import is_hit, named_objects
from ..explain import ExplainedWord, Explanation
from ..explain.explanation import text_of, words_of
from ..metrics import Scores
from ..models.image_reading import to_rgb
from ..models.tokenization_captioner import decode_captions

SHOWN = 8  # images that are shown
SIDE = 224  # largest width or height of a picture in pixels, which is more than is drawn
MEASURED = 32  # images that attention and the loss's use of the image are measured on, those that are shown among them


@dataclass(frozen=True)
class Look:
    """
    Attributes:
        shown: of the images that are shown: what is said, and maps of its words if the captioner attends.
        references: theirs.
        numbers: what [`find_alarms`] and the log want to know: `features_differ`, `loss_use` and its interval, of a
            captioner that attends `attention_entropy`, `attention_images`, `attention_steps`, and `pointing` if the
            data are shapes and some caption equals a reference.
    """

    shown: list[Explanation]
    references: list[list[str]]
    numbers: dict[str, float]


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` places evenly among `count`: data are often sorted by where they come from."""
    return [place * count // min(wanted, count) for place in range(min(wanted, count))]


class WatchedImages:
    """
    Args:
        processor: of the captioner.
        rows: what is evaluated, with `image` or `image_features`, and `captions`.
        pictures: the same rows with `image` and `captions`, and of shapes `objects` and `mentions`.
    """

    def __init__(self, processor: ProcessorMixin, rows: Any, pictures: datasets.Dataset):
        self.processor, self.rows, self.pictures = processor, rows, pictures
        self.places = spread(len(pictures), MEASURED)
        self.shown = spread(len(self.places), SHOWN)  # among the places
        self._batch: dict[str, torch.Tensor] | None = None
        self._table: datasets.Dataset | None = None

    @torch.no_grad()
    def look(
        self, model: PreTrainedModel, said: Mapping[int, Sequence[int] | np.ndarray] | None, **generation: Any
    ) -> Look:
        """
        One pass over the images.

        Args:
            model: in evaluation mode.
            said: the tokens that were generated for each row, start token first. Without them captions are generated.
            **generation: of `generate()`.
        """
        batch = self._rows()
        features, grid = batch.get("image_features"), batch.get("grid")
        if features is None:
            features, grid = model.vision_encoder(batch["pixel_values"].to(model.device))
        features = features.to(model.device)
        seen = {"image_features": features} | ({} if grid is None else {"grid": grid})
        numbers = {"features_differ": _differ(features)} | self._loss_use(model, seen, batch["labels"])
        if said is None:
            tokens = model.generate(**seen, **generation)
        else:
            tokens = _padded([said[place] for place in self.places], model.config.decoder_start_token_id)
            tokens = tokens.to(model.device)
        lengths = (~model.ends_before(tokens[:, 1:]) & (tokens[:, 1:] >= 0)).sum(1).tolist()
        maps = None
        if model.config.attends and tokens.shape[1] > 1:
            maps = self._maps(model, seen, tokens)  # (M, heads, T, L)
            numbers |= _attention_numbers(maps, lengths)
        return self._shown_and_pointing(model, tokens, lengths, maps, grid, numbers)

    def _rows(self) -> dict[str, torch.Tensor]:
        """The batch, with one reference of each image; read once."""
        if self._batch is None:
            rows = [dict(self.rows[place]) for place in self.places]
            for row in rows:
                row["captions"] = list(row["captions"])[:1]
            self._batch = CaptionCollator(self.processor)(rows)
            self._table = self.pictures.select(self.places)
        return self._batch

    def _loss_use(self, model, seen: dict[str, Any], labels: torch.Tensor) -> dict[str, float]:
        """By how much a token's loss grows if the image is exchanged for another."""
        count = len(labels)
        if count < 2:
            return {}
        other = {**seen, "image_features": seen["image_features"].roll(count // 2, 0)}
        labels = labels.to(model.device)
        own, exchanged = (_losses(model, images, labels) for images in (seen, other))
        use = Scores.from_mean((exchanged - own).double().cpu().numpy())
        low, high = use.confidence_interval()
        return {"loss_use": use.corpus, "loss_use_low": low, "loss_use_high": high}

    def _maps(self, model, seen: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
        """(M, heads, T, L) of the last layer over the grid, without prefix tokens; a map sums to 1."""
        words = tokens[:, :-1]
        words = words.masked_fill(words < 0, model.config.decoder_start_token_id)  # behind the end, nothing reads it
        outputs = model(**seen, decoder_input_ids=words, use_cache=False, output_attentions=True)
        maps = outputs.cross_attentions[-1][..., model.vision_encoder.num_prefix_regions :].float()
        return (maps / maps.sum(-1, keepdim=True).clamp(min=1e-12)).cpu()

    def _shown_and_pointing(self, model, tokens, lengths, maps, grid, numbers: dict[str, float]) -> Look:
        assert self._table is not None
        tokenizer = self.processor.tokenizer
        captions = decode_captions(tokenizer, tokens.cpu())
        over_grid = None if maps is None else maps.mean(1).unflatten(-1, _size(grid, maps.shape[-1])).numpy()
        shown, hits = [], []
        for row, (caption, length) in enumerate(zip(captions, lengths, strict=True)):
            ids = tokens[row, 1 : length + 1].tolist()
            if over_grid is not None and "mentions" in self._table.column_names:
                hits += _hits(tokenizer.convert_ids_to_tokens(ids), caption, self._table[row], over_grid[row])
            if row in self.shown:
                words = () if over_grid is None else _words(tokenizer, ids, model.eos_token_ids, over_grid[row])
                image = to_rgb(self._table[row]["image"])
                image.thumbnail((SIDE, SIDE))  # maps are painted over every one of its pixels
                shown.append(Explanation(image, caption, words, "attention"))
        if hits:
            numbers["pointing"] = float(np.mean(hits))
        return Look(shown, [self._table[row]["captions"] for row in self.shown], numbers)


def _words(tokenizer, ids: list[int], ends: list[int], maps: np.ndarray) -> tuple[ExplainedWord, ...]:
    """Words with their maps, and without probabilities, which these pictures do not show."""
    return tuple(
        ExplainedWord(text_of(tokenizer, [ids[place] for place in word], ends), math.nan, (), maps[word].mean(0))
        for word in (words_of(tokenizer, ids) if ids else [])
    )


def _size(grid: Any, regions: int) -> tuple[int, int]:
    if grid is None:  # features of a data set without one: a square, as encoders take it
        return (round(regions**0.5), regions // round(regions**0.5))
    height, width = grid[0].tolist() if isinstance(grid, torch.Tensor) else grid
    return height, width


def _hits(tokens: list[str], caption: str, row: dict, maps: np.ndarray) -> list[bool]:
    """Whether attention points at each shape that the caption names, if it is one of the references."""
    if caption not in row["captions"]:
        return []
    return [is_hit(maps[place], box) for place, box in named_objects(tokens, caption, row)]


def _padded(rows: Sequence[Sequence[int] | np.ndarray], start: int) -> torch.Tensor:
    """Token ids of the evaluation, which are padded by -100 where batches were put together."""
    filled = [torch.as_tensor(row if len(row) else [start]) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(filled, batch_first=True, padding_value=-100)


def _differ(features: torch.Tensor) -> float:
    """Standard deviation of the regions (M, L, D) over images, relative to their root mean square."""
    features = features.float()
    if len(features) < 2:
        return 1.0
    size = features.square().mean().sqrt().clamp(min=1e-12)
    return float((features - features.mean(0)).square().mean().sqrt() / size)


def _losses(model, images: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of each caption's tokens: labels (M, 1, T) -> (M,)."""
    words = model.prepare_decoder_input_ids_from_labels(labels)[:, 0]
    logits = model(**images, decoder_input_ids=words, use_cache=False).logits
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels[:, 0].flatten(), reduction="none")
    real = labels[:, 0] != -100
    return losses.view(real.shape).sum(1) / real.sum(1).clamp(min=1)


def _attention_numbers(maps: torch.Tensor, lengths: Sequence[int]) -> dict[str, float]:
    """
    Of maps (M, heads, T, L) up to the captions' ends: the mean entropy of each head's map, relative to that of equal
    weights; and the total variation distances of maps, the mean over heads, from their mean over images at the same
    step, and from their mean over the steps of the same image.
    """
    steps = torch.arange(maps.shape[2])
    real = steps[None] < torch.tensor(lengths)[:, None]  # (M, T)
    if not real.any():
        return {}
    regions = maps.shape[-1]
    entropy = torch.special.entr(maps).sum(-1).mean(1) / max(np.log(regions), 1e-12)  # (M, T)
    numbers = {"attention_entropy": float(entropy[real].mean())} if regions > 1 else {}
    together = maps.mean(1) * real[..., None]  # (M, T, L)
    for name, axis in (("attention_images", 0), ("attention_steps", 1)):
        counts = real.sum(axis, keepdim=True)
        several = real & (counts > 1)
        if regions < 2 or not several.any():
            continue
        mean = together.sum(axis, keepdim=True) / counts.clamp(min=1)[..., None]
        numbers[name] = float((together - mean).abs().sum(-1)[several].mean() / 2)
    return numbers
