"""CLIPScore: how well a caption fits its image according to CLIP, without references."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .scores import Scores

PROMPT = "A photo depicts "
WEIGHT = 2.5


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
        ValueError: the folder does not exist, or there are more or fewer images than captions.
    """
    import torch
    from transformers import AutoModel, AutoProcessor

    if not Path(clip_folder).is_dir():
        raise ValueError(f"clip_folder must be a folder with a CLIP model, got {os.fspath(clip_folder)!r}")
    if len(images) != len(captions):
        raise ValueError(f"images must be one for each of the {len(captions)} captions, got {len(images)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(clip_folder, local_files_only=True).to(device).eval()
    processor = AutoProcessor.from_pretrained(clip_folder, local_files_only=True)
    length = model.config.text_config.max_position_embeddings

    scores = []
    for start in range(0, len(captions), batch_size):
        inputs = processor(
            text=[PROMPT + caption for caption in captions[start : start + batch_size]],
            images=[_open(image) for image in images[start : start + batch_size]],
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=length,
        ).to(device)
        with torch.inference_mode():
            outputs = model(**inputs)
        cosine = torch.nn.functional.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
        scores.append(WEIGHT * cosine.clamp(min=0).double().cpu().numpy())
    return Scores.from_mean(np.concatenate(scores))


def _open(image: Image.Image | str | os.PathLike) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    with Image.open(image) as opened:
        return opened.convert("RGB")
