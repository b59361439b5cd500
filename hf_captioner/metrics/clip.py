"""CLIPScore: how well a caption fits its image according to CLIP, without references; and RefCLIPScore, with them."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..files import open_picture
from .scores import Scores

PROMPT = "A photo depicts "
WEIGHT = 2.5


def load_clip(folder: str | os.PathLike, device: Any = "cpu") -> tuple[Any, Any]:
    """A CLIP model in evaluation mode, and its processor, from a local folder."""
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
    return model, AutoProcessor.from_pretrained(folder, local_files_only=True)


def clip_texts(model: Any, captions: Sequence[str]) -> dict[str, Any]:
    """Captions as the model's processor takes them, with the paper's prompt."""
    length = model.config.text_config.max_position_embeddings
    return {"text": [PROMPT + text for text in captions], "padding": True, "truncation": True, "max_length": length}


def clip_score(
    captions: Sequence[str],
    images: Sequence[Image.Image | str | os.PathLike],
    clip_folder: str | os.PathLike,
    batch_size: int = 64,
) -> Scores:
    """CLIPScore (Hessel et al. 2021, equation 1): 2.5 max(cos(image, caption), 0), with the paper's prompt.

    Args:
        captions: B texts.
        images: B images, or paths of images.
        clip_folder: a local folder with a CLIP model and its processor; nothing is downloaded. Scores of different
            models are not comparable; the paper uses ViT-B/32.
        batch_size: images at a time.

    Returns:
        The scores (0 to 2.5); the corpus score is their mean.

    Raises:
        ValueError: the folder does not exist, there are more or fewer images than captions, or one cannot be read or
            has more than 8 bits a channel.

    Examples:
        The folder `clip` has a CLIP model and its processor.

        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.metrics import clip_score
        >>> scores = clip_score(["a red circle", "a dog"], shapes_dataset(2)["image"], "clip")
        >>> scores.per_image.shape, bool(0 <= scores.corpus <= 2.5)
        ((2,), True)
    """
    return clip_scores(captions, images, clip_folder, batch_size=batch_size)["clip_score"]


def clip_scores(
    captions: Sequence[str],
    images: Sequence[Image.Image | str | os.PathLike],
    clip_folder: str | os.PathLike,
    references: Sequence[Sequence[str]] | None = None,
    batch_size: int = 64,
) -> dict[str, Scores]:
    """[`clip_score`] and, with references, RefCLIPScore (Hessel et al. 2021, section 3): the harmonic mean of
    CLIPScore and the largest max(cos(caption, reference), 0).

    Args:
        captions, images, clip_folder, batch_size: as for [`clip_score`].
        references: B lists of one or more texts.

    Returns:
        `clip_score` and, with references, `ref_clip_score`; the corpus scores are the images' means.

    Raises:
        ValueError: as for [`clip_score`], or there are more or fewer lists of references than captions.

    Examples:
        The folder `clip` has a CLIP model and its processor.

        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.metrics import clip_scores
        >>> data = shapes_dataset(2)
        >>> scores = clip_scores(["a red circle", "a dog"], data["image"], "clip", references=data["captions"])
        >>> {name: score.per_image.shape for name, score in scores.items()}
        {'clip_score': (2,), 'ref_clip_score': (2,)}
    """
    import torch

    if not Path(clip_folder).is_dir():
        raise ValueError(f"clip_folder must be a folder with a CLIP model, got {os.fspath(clip_folder)!r}")
    if len(images) != len(captions):
        raise ValueError(f"images must be one for each of the {len(captions)} captions, got {len(images)}")
    if references is not None and len(references) != len(captions):
        raise ValueError(f"references must be of each of the {len(captions)} captions, got {len(references)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load_clip(clip_folder, device)
    fits, similar = [], []
    for start in range(0, len(captions), batch_size):
        rows = slice(start, start + batch_size)
        inputs = processor(
            **clip_texts(model, captions[rows]),
            images=[_open(image, start + place) for place, image in enumerate(images[rows])],
            return_tensors="pt",
        )
        with torch.inference_mode():
            outputs = model(**inputs.to(device))
            cosine = torch.nn.functional.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
            fits.append(WEIGHT * cosine.clamp(min=0).double().cpu().numpy())
            if references is not None:
                said = outputs.text_embeds
                batch = references[rows]
                caption = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(truths) for truths in batch]))
                flat = list(chain.from_iterable(batch))
                parts = [flat[first : first + batch_size] for first in range(0, len(flat), batch_size)]
                encoded = [processor(**clip_texts(model, part), return_tensors="pt").to(device) for part in parts]
                truths = torch.cat([model.get_text_features(**part).pooler_output for part in encoded])
                cosine = torch.nn.functional.cosine_similarity(truths, said[caption.to(device)]).double().cpu()
                best = torch.zeros(len(batch), dtype=torch.float64).scatter_reduce(0, caption, cosine, "amax")
                similar.append(best.numpy())  # from zeros on, so that a negative cosine counts as 0
    fit = np.concatenate(fits)
    scores = {"clip_score": Scores.from_mean(fit)}
    if references is not None:
        near = np.concatenate(similar)
        product, total = 2 * fit * near, fit + near
        scores["ref_clip_score"] = Scores.from_mean(
            np.divide(product, total, out=np.zeros_like(total), where=total > 0)
        )
    return scores


def _open(image: Image.Image | str | os.PathLike, place: int) -> Image.Image:
    try:
        if isinstance(image, Image.Image):
            return _seen(image)
        with open_picture(image) as opened:
            return _seen(opened)
    except Exception as error:  # decoders raise whatever they like: SyntaxError, struct.error, IndexError...
        name = getattr(image, "filename", "") if isinstance(image, Image.Image) else os.fspath(image)
        raise ValueError(f"images[{place}] {name!r} must be an image that can be read ({error})") from error


def _seen(image: Image.Image) -> Image.Image:
    """Upright and on white where it is transparent, as captioners see it."""
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # Pillow's conversion would cut off what is brighter than 255
        raise ValueError(f"it must have 8 bits a channel, got mode {image.mode}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
