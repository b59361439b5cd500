"""Contrastive reranking: the captioner proposes, a model that compares images and texts chooses."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from ..compat import DecodingSteps, draw_samples
from ..errors import InputError
from ..metrics.clip import WEIGHT, clip_texts, load_clip
from .beams import search
from .candidates import chosen, said

Scorer = Callable[[Sequence[Any], list[list[int]]], Sequence[float]]


class ClipScorer:
    """
    CLIPScore (Hessel et al. 2021, equation 1) of several captions an image, which is encoded once for all of them. The
    cosine is not cut off at 0, so that captions below it have an order, too.

    Args:
        folder: a local folder with a CLIP model and its processor; nothing is downloaded.
        tokenizer: of the captions.
        device: where the CLIP model runs.

    Raises:
        InputError: if the folder does not exist.

    Examples:
        The folder `clip` has a CLIP model and its processor.

        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.decoding import ClipScorer
        >>> tokenizer = train_tokenizer(["a red circle", "a dog"])
        >>> captions = tokenizer(["a red circle", "a dog"], add_special_tokens=False)["input_ids"]
        >>> scores = ClipScorer("clip", tokenizer)(shapes_dataset(1)["image"], captions)  # two captions of one image
        >>> len(scores)
        2
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        tokenizer: PreTrainedTokenizerBase,
        device: str | torch.device = "cpu",
    ):
        if not Path(folder).is_dir():
            raise InputError(f"`reranker` must be a folder with a CLIP model, got {os.fspath(folder)!r}")
        self.tokenizer = tokenizer
        self.model, self.processor = load_clip(folder, device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], captions: list[list[int]]) -> list[float]:
        """B images and B * k captions as lists of tokens -> B * k numbers."""
        texts = self.tokenizer.batch_decode(captions, skip_special_tokens=True)
        inputs = self.processor(
            **clip_texts(self.model, [text.strip() for text in texts]), images=list(images), return_tensors="pt"
        )
        outputs = self.model(**inputs.to(self.model.device))
        seen = outputs.image_embeds.repeat_interleave(len(captions) // len(images), dim=0)
        return (WEIGHT * torch.nn.functional.cosine_similarity(seen, outputs.text_embeds).double()).tolist()


def contrastive_reranking(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    scorer: Scorer | None = None,
    images: Sequence | None = None,
    num_best: int = 1,
    **model_kwargs,
):
    """
    Of `num_return_sequences` beams or samples the `num_best` that fit the image best in the eyes of a model that
    compares images and texts, best first. Fang et al. 2015 ("From Captions to Visual Concepts and Back", section 5)
    reranked captions by such a model's cosine; with CLIP it is what Ramesh et al. 2021 ("Zero-Shot Text-to-Image
    Generation", section 2.6) did the other way round. Not transformers' contrastive search, which compares words.

        model.generate(pixel_values, custom_generate=contrastive_reranking, num_beams=5, num_return_sequences=5,
                       scorer=ClipScorer("clip", processor.tokenizer), images=images)

    Args:
        scorer: `scorer(images, captions)` takes B images and B * k captions as lists of tokens, the start and all
            after the end left out, and returns B * k numbers; [`ClipScorer`] or a function.
        images: B images as the scorer takes them.
        num_best: captions that are returned for each image.

    Returns:
        as `generate()`; `sequences_scores` are the scorer's.

    Raises:
        InputError: without `scorer` or `images`, with `num_best` above the candidates, or if beams are to be sampled.

    Examples:
        >>> import hf_captioner
        >>> from transformers import pipeline
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.decoding import contrastive_reranking
        >>> captioner, image = pipeline("image-captioning"), shapes_dataset(1)[0]["image"]
        >>> def longest(images, captions):  # or ClipScorer("path/to/clip", captioner.tokenizer)
        ...     return [float(len(caption)) for caption in captions]
        >>> beams = dict(num_beams=4, num_return_sequences=4)
        >>> [caption] = captioner(image, decoding=contrastive_reranking, scorer=longest, **beams)
        >>> len(caption["tokens"]) == max(len(beam["tokens"]) for beam in captioner(image, **beams))
        True
    """
    settings, prompt = generation_config, input_ids.shape[1]
    count = settings.num_return_sequences
    if scorer is None or images is None:
        raise InputError(f"contrastive_reranking must be given `scorer` and `images`, got {scorer!r} and {images!r}")
    if settings.do_sample and settings.num_beams != 1:
        raise InputError(f"contrastive_reranking must have beams or samples, got {settings.num_beams} sampled beams")
    if not 1 <= num_best <= count:
        raise InputError(f"`num_best` must be 1 to {count}, of as many captions one can choose, got {num_best}")
    if settings.do_sample:
        candidates = draw_samples(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=settings,
            **model_kwargs,
        )
    else:
        steps = [DecodingSteps(model, settings, model_kwargs)]
        candidates = search(steps, input_ids, logits_processor, stopping_criteria, settings)
    tokens = candidates if isinstance(candidates, torch.Tensor) else candidates.sequences
    scores = torch.as_tensor(scorer(images, said(model, tokens, prompt)), dtype=torch.float, device=tokens.device)
    best, places = scores.view(-1, count).topk(num_best)
    rows = places + torch.arange(len(places), device=places.device)[:, None] * count
    return chosen(candidates, rows.flatten(), best.flatten(), prompt)
