"""The confidence of captions beside what they are worth: what `calibrate` and `evaluate` have in common."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..decoding.words import places_of_words
from ..explain.calibration import expected_calibration_error, reliability, risk_coverage
from ..metrics import tokenize
from ..metrics.caption_metrics import score_words
from ..models.confidence_captioner import token_log_probabilities
from ..models.machine_captioner import Precision, choose_precision

EXACT = choose_precision("float32")

DEFINITIONS = {
    "words": "a word, as spaces part them, is right if the image's references have it (its tokens, by the tokens of "
    "the metrics); its probability is the product of its tokens'; the end is not counted",
    "ece": "expected calibration error, 10 parts of equal width (Guo et al. 2017)",
    "score": "geometric mean of the tokens' probabilities, the end's included, times the image's familiarity",
    "risk": "1 - min(CIDEr-D, 1) of a caption; over the most confident captions (Geifman and El-Yaniv 2017)",
}


@dataclass
class Caption:
    """
    A caption and how sure the captioner is of it.

    Attributes:
        text: the caption.
        words: as spaces part them.
        probabilities: (words, temperatures).
        scores: (temperatures), the geometric mean of all tokens' probabilities.
        familiarity: of its image, 1 if the captioner does not know any.
        mean_region: (D), of its image; of a caption that was read from a file, `None`.
    """

    text: str
    words: list[str]
    probabilities: np.ndarray
    scores: np.ndarray
    familiarity: float = 1.0
    mean_region: torch.Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the region, without loss."""
        return {
            "caption": self.text,
            "words": self.words,
            "probabilities": self.probabilities.tolist(),
            "scores": self.scores.tolist(),
            "familiarity": self.familiarity,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Caption":
        scores = np.array(row["scores"])
        probabilities = np.array(row["probabilities"]).reshape(-1, len(scores))
        return cls(row["caption"], row["words"], probabilities, scores, row["familiarity"])


def confidence_in(
    model, processor, encoded: Any, captions: Sequence[str] | None, temperatures: Sequence[float]
) -> Iterator[Caption]:
    """
    How sure a captioner is of a caption of each image, under each of several temperatures.

    Args:
        model, processor: the captioner.
        encoded: what its `get_encoder()` made of the images.
        captions: what it said of them; captions them as its generation configuration says if `None`.
        temperatures: of the softmax.

    Raises:
        InputError: if the tokenizer's tokens do not tell where a word begins.
    """
    if captions is None:
        tokens = model.generate(encoder_outputs=encoded)
    else:
        labels = processor(text_target=list(captions), padding=True, return_tensors="pt")["labels"].to(model.device)
        start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
        tokens = torch.cat([start, labels.masked_fill(labels == -100, model.config.pad_token_id)], dim=1)
    logits = model(encoder_outputs=encoded, decoder_input_ids=tokens[:, :-1], use_cache=False).logits
    tokens = tokens[:, 1:]
    logs = torch.stack([token_log_probabilities(logits, tokens, one) for one in temperatures], -1)  # (B, T, G)
    real = (~model.ends_before(tokens) & (tokens != model.config.pad_token_id)).cpu()
    means = encoded.last_hidden_state.float().mean(1)
    known = torch.ones(len(means)) if model.familiarity is None else model.familiarity(means[:, None])
    for row, (ids, own, keep) in enumerate(zip(tokens.cpu(), logs.double().cpu(), real, strict=True)):
        ids, own = ids[keep].tolist(), own[keep]
        found = places_of_words(processor.tokenizer, ids)
        yield Caption(
            processor.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            [word for word, _ in found],
            np.array([own[at].sum(0).exp().tolist() for _, at in found]).reshape(-1, len(temperatures)),
            own.mean(0).exp().numpy(),
            known[row].item(),
            means[row].cpu(),
        )


@torch.inference_mode()
def read_confidence(
    model,
    processor,
    images: Iterable[Image.Image],
    temperatures: Sequence[float],
    captions: Iterable[str] | None = None,
    batch_size: int = 16,
    precision: Precision = EXACT,
) -> Iterator[Caption]:
    """
    [`confidence_in`] the captions of images.

    Args:
        model, processor: the captioner.
        images: what is captioned.
        temperatures: of the softmax.
        captions: what it said of the images; captions them as its generation configuration says if `None`.
        batch_size: images at a time.
        precision: how the vision model runs.

    Raises:
        InputError: if the tokenizer's tokens do not tell where a word begins.
    """
    images, said = iter(images), None if captions is None else iter(captions)
    while batch := list(islice(images, batch_size)):
        pixels = processor(images=batch, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        texts = None if said is None else list(islice(said, len(batch)))
        yield from confidence_in(model, processor, precision.encode(model, pixels), texts, temperatures)


def right_words(caption: Caption, references: Sequence[str]) -> list[bool]:
    """For every word, whether the image's references have it; bare punctuation, which they lose, is in all of them."""
    known = {token for reference in tokenize(references) for token in reference}
    return [set(tokens) <= known for tokens in tokenize(caption.words)]


def costs(captions: Sequence[str], references: Sequence[Sequence[str]], frequency=None) -> np.ndarray:
    """The risk of every caption; `frequency` as for CIDEr-D."""
    scores = score_words(tokenize(captions), [tokenize(texts) for texts in references], ("cider_d",), frequency)
    return 1 - np.minimum(scores["cider_d"].per_image, 1)


def confidence_report(
    model, captions: Sequence[Caption], references: Sequence[Sequence[str]], risks: Sequence[float]
) -> dict:
    """
    How far the confidence of captions can be believed.

    Args:
        model: whose captions they are.
        captions: under temperature 1 and that of the model's configuration, in this order.
        references: of their images.
        risks: of each.

    Returns:
        what [`save_calibration_picture`] shows, and the share of captions below the least score.
    """
    right = [one for caption, texts in zip(captions, references, strict=True) for one in right_words(caption, texts)]
    before, after = np.concatenate([caption.probabilities for caption in captions]).T
    scores = np.array([caption.scores[-1] * caption.familiarity for caption in captions])
    least = model.config.min_score
    return {
        "temperature": float(model.config.score_temperature),
        "words": {
            "count": len(right),
            "right": float(np.mean(right)),
            "probability_before": float(before.mean()),
            "probability": float(after.mean()),
            "ece_before": expected_calibration_error(before, right),
            "ece": expected_calibration_error(after, right),
            "reliability_before": reliability(before, right),
            "reliability": reliability(after, right),
        },
        "min_score": least,
        "abstained": float((scores < (least or 0)).mean()),
        "risk_coverage": risk_coverage(scores, risks),
        "definitions": DEFINITIONS,
    }
