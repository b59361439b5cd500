"""CHAIR against an obvious count, on shapes and by COCO's words."""

import re

import pytest

from hf_captioner.data import shapes_dataset
from hf_captioner.data.shapes import SHAPES
from hf_captioner.metrics import CaptionMetrics, chair, object_words, tokenize
from hf_captioner.metrics.chair_score import COCO_WORDS, named_objects, plural

SHAPE_WORDS = object_words({shape: () for shape in SHAPES})


def test_shapes_against_counting_words():
    rows = shapes_dataset(40, seed=3)
    captions = [rows[image * 7 % 40]["captions"][image % 5] for image in range(40)]  # many are of other images
    captions[3] = "nothing at all"
    objects = [[one["shape"] for one in row["objects"]] for row in rows]
    references = [tokenize(row["captions"]) for row in rows]
    scores = chair(tokenize(captions), objects, references, SHAPE_WORDS)
    wrong, said, spoiled = 0, 0, 0
    for caption, there in zip(captions, objects, strict=True):
        named = re.findall("circle|square|triangle|diamond", caption)
        absent = [name for name in named if name not in there]
        wrong, said, spoiled = wrong + len(absent), said + len(named), spoiled + bool(absent)
    assert 0 < wrong < said
    assert scores["chair_i"].corpus == pytest.approx(wrong / said)
    assert scores["chair_s"].corpus == pytest.approx(spoiled / 40)
    right = chair(tokenize([row["captions"][0] for row in rows]), objects, references, SHAPE_WORDS)
    assert right["chair_i"].corpus == right["chair_s"].corpus == 0


@pytest.mark.parametrize(
    "caption,objects",
    [
        ("two men and a puppy near motorcycles", ["person", "dog", "motorcycle"]),
        ("a hot dog on a table", ["hot dog", "dining table"]),
        ("a man with a hot dog and his dogs", ["person", "hot dog", "dog"]),
        ("a baby elephant behind an adult elephant", ["elephant", "elephant"]),  # no person
        ("a baby sits on a toilet seat", ["person", "toilet"]),  # no chair
        ("a batter at home plate with a baseball bat", ["person", "baseball bat"]),
        ("women with wine glasses", ["person", "wine glass"]),
        ("a bow tie and a traffic light", ["tie", "traffic light"]),
        ("a train on the train tracks", ["train"]),
        ("sand and water", []),
        ("", []),
    ],
)
def test_what_captions_of_coco_name(caption, objects):
    assert named_objects(caption.split(), COCO_WORDS) == objects


def test_the_words_are_of_80_categories():
    assert len(set(COCO_WORDS.values()) - {""}) == 80
    assert [plural(word) for word in ("bus", "toy", "baby", "woman", "stop sign", "knife", "bench")] == [
        "buses", "toys", "babies", "women", "stop signs", "knives", "benches",
    ]  # fmt: skip


def test_an_object_that_a_reference_names_is_there():
    """As in the paper: the annotations of objects are not complete."""
    caption, reference = [["a", "dog", "and", "a", "cat"]], [[["a", "kitten"]]]
    assert chair(caption, [["dog"]], reference)["chair_i"].corpus == 0
    assert chair(caption, [["dog"]], [[["a", "pet"]]])["chair_i"].corpus == 0.5
    assert chair(caption, [[]], [[["a", "pet"]]])["chair_s"].corpus == 1


def test_mentions_are_pooled_over_images():
    captions = [["a", "dog"], ["a", "cat", "a", "bird", "and", "a", "horse"], ["grass"]]
    scores = chair(captions, [["dog"], ["cat", "horse"], []], [[["x"]]] * 3)
    assert scores["chair_i"].per_image.tolist() == [0, 1 / 3, 0]
    assert scores["chair_i"].corpus == 1 / 4 and scores["chair_s"].corpus == pytest.approx(1 / 3)


def test_in_the_metric_and_without_objects():
    words = dict(predictions=["a cat", "a dog"], references=[["a pet"], ["a dog"]], metrics=["chair_i", "chair_s"])
    assert CaptionMetrics().compute(**words, objects=[["dog"], ["dog"]]) == {"chair_i": 0.5, "chair_s": 0.5}
    missing = "not available, because the objects in the images are not known"
    assert CaptionMetrics().compute(**words) == {"chair_i": missing, "chair_s": missing}
    with pytest.raises(ValueError, match="objects must be one list for each of the 2 captions, got 1"):
        CaptionMetrics().compute(**words, objects=[["dog"]])
