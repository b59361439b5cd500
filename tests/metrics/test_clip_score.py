"""CLIPScore with a tiny CLIP of random weights, made here."""

import numpy as np
import pytest
import torch
from PIL import Image
from testing.tiny_clip import tiny_clip
from transformers import CLIPModel, CLIPProcessor

from hf_captioner.metrics import CaptionMetrics, clip_score, clip_scores


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(256, size=(16, 16, 3), dtype=np.uint8)) for _ in range(3)]


CAPTIONS = ["dog runs", "red cat", "dog dog red"]


def cosines(clip_folder, images):
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPProcessor.from_pretrained(clip_folder)
    found = []
    for caption, image in zip(CAPTIONS, images, strict=True):
        inputs = processor(text=[f"A photo depicts {caption}"], images=[image], return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        found.append(torch.cosine_similarity(outputs.image_embeds, outputs.text_embeds).item())
    return np.array(found)


def test_two_and_a_half_times_the_cosine_if_it_is_positive(clip_folder, images):
    expected = cosines(clip_folder, images)
    scores = clip_score(CAPTIONS, images, clip_folder, batch_size=2)
    np.testing.assert_allclose(scores.per_image, 2.5 * np.maximum(expected, 0), atol=1e-5)
    assert scores.corpus == pytest.approx(scores.per_image.mean())
    assert min(expected) < -0.02 and max(expected) > 0.02, "both signs must be tried"


def test_files_and_the_metric_give_the_same(clip_folder, images, tmp_path):
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    result = CaptionMetrics().compute(
        predictions=CAPTIONS,
        references=[["a"]] * 3,
        metrics=["clip_score"],
        images=paths,
        clip_folder=clip_folder,
        per_image=True,
    )
    expected = clip_score(CAPTIONS, images, clip_folder)
    assert result["clip_score"] == pytest.approx(expected.corpus)
    assert result["per_image"]["clip_score"] == pytest.approx(expected.per_image.tolist())


def test_ref_clip_score_is_the_paper_s_formula(clip_folder, images):
    """Section 3 of Hessel et al. 2021, one caption and one reference at a time."""
    references = [["dog runs"], ["red cat runs", "cat", "red dog"], ["A cat", "dog red cat runs"]]
    found = clip_scores(CAPTIONS, images, clip_folder, references, batch_size=2)
    model, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)

    def embed(text):
        with torch.no_grad():
            vector = model.get_text_features(**processor(text=["A photo depicts " + text], return_tensors="pt"))
        return vector.pooler_output[0] / vector.pooler_output[0].norm()

    expected, cosines = [], []
    plain = clip_score(CAPTIONS, images, clip_folder).per_image
    for caption, truths, fit in zip(CAPTIONS, references, plain, strict=True):
        cosines += [float(embed(caption) @ embed(truth)) for truth in truths]
        best = max(0, *cosines[-len(truths) :], 0)
        expected.append(2 * fit * best / (fit + best) if fit + best else 0)
    assert found["clip_score"].per_image == pytest.approx(plain)
    assert found["ref_clip_score"].per_image == pytest.approx(expected, abs=1e-5)
    assert max(expected) > 0
    result = CaptionMetrics().compute(
        predictions=CAPTIONS,
        references=references,
        metrics=["ref_clip_score"],
        images=images,
        clip_folder=clip_folder,
    )
    assert result == {"ref_clip_score": pytest.approx(np.mean(expected), abs=1e-5)}
    with pytest.raises(ValueError, match="references must be of each of the 3 captions, got 2"):
        clip_scores(CAPTIONS, images, clip_folder, references[:2])


def test_a_long_caption_is_cut(clip_folder, images):
    scores = clip_score(["dog red " * 50], images[:1], clip_folder)
    assert np.isfinite(scores.corpus)


def test_errors_name_the_field(clip_folder, images):
    with pytest.raises(ValueError, match="clip_folder must be a folder with a CLIP model, got 'openai/clip'"):
        clip_score(CAPTIONS, images, "openai/clip")
    with pytest.raises(ValueError, match="images must be one for each of the 3 captions, got 2"):
        clip_score(CAPTIONS, images[:2], clip_folder)
