"""Views of images: what they show, that the cache holds them, and that each epoch draws its own, always the same."""

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file
from testing.tiny_models import tiny_model
from torch.utils.data import DataLoader

from hf_captioner import CaptionerImageProcessor
from hf_captioner.data import cache_features, shapes_dataset
from hf_captioner.data.views import DrawnView, Mirrored, OneOfViews, RandomView, RandomViews, views_to_cache
from hf_captioner.errors import InputError

PROCESSOR = CaptionerImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def dataset():
    return shapes_dataset(6, seed=1).select_columns(["image", "captions"])


def test_every_other_image_is_mirrored(dataset):
    seen = {False: 0, True: 0}
    for number in range(10):
        for row in range(6):
            image = dataset[row]["image"]
            plain = np.asarray(image)
            found = np.asarray(RandomView(flip=True).draw(image, np.random.default_rng([number, row])))
            mirrored = not np.array_equal(plain, found)
            assert not mirrored or np.array_equal(plain[:, ::-1], found)
            seen[mirrored] += 1
    assert min(seen.values()) > 15


def test_crops_are_parts_of_the_image_of_their_size_and_shape():
    rows = np.add.outer(np.arange(60) * 4, np.zeros(50)).astype(np.uint8)  # a pixel's values tell its place
    columns = np.add.outer(np.zeros(60), np.arange(50) * 5).astype(np.uint8)
    image = PILImage.fromarray(np.stack([rows, columns, rows], -1))
    rng = np.random.default_rng(0)
    shares, stretched, places = [], [], set()
    for _ in range(300):
        part = np.asarray(RandomView(flip=False, smallest_crop=0.5).draw(image, rng))
        top, left = int(part[0, 0, 0]) // 4, int(part[0, 0, 1]) // 5
        assert np.array_equal(part, np.asarray(image)[top : top + len(part), left : left + part.shape[1]])
        shares.append(len(part) * part.shape[1] / 3000)
        stretched.append(np.log(part.shape[1] / len(part) * 1.2))
        places.add((top, left))
    assert 0.47 < min(shares) < 0.55 and 0.95 < max(shares) <= 1 and 0.7 < np.mean(shares) < 0.8 and len(places) > 60
    assert -np.log(1.1) - 0.05 < min(stretched) < -0.05 and 0.05 < max(stretched) < np.log(1.1) + 0.05
    # one pixel is cropped to one pixel
    assert RandomView(flip=True, smallest_crop=0.1).draw(PILImage.new("RGB", (1, 1)), rng).size == (1, 1)


@pytest.mark.parametrize("share", [0, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match=f"`smallest_crop` must be in .* got {share}"):
        RandomView(False, share)


@pytest.mark.parametrize("flip", [False, True])
def test_the_views_of_the_cache_are_what_they_say(dataset, tmp_path, flip):
    """Each view against the vision model on images that were changed by hand; the draws use all of them."""
    encoder = tiny_model().vision_encoder
    views = views_to_cache(flip, 2, 0.5)
    assert [type(view) for view in views] == [type(None), *[Mirrored] * flip, DrawnView, DrawnView]
    cached = [cache_features(dataset, encoder, PROCESSOR, tmp_path / "one", view=view) for view in views]
    assert len(list((tmp_path / "one").iterdir())) == len(views)
    for view in views:  # the same each time, whatever process reads the images
        cache_features(dataset, encoder, PROCESSOR, tmp_path / "two", num_workers=2, view=view)
    for path in (tmp_path / "one").rglob("*.safetensors"):
        again = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert torch.equal(load_file(path)["features"], load_file(again)["features"])
    drawn = OneOfViews(cached)
    assert len(drawn) == 6
    for row in range(6):
        image = dataset[row]["image"]
        images = [image, *[image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)] * flip]
        images += [DrawnView(RandomView(flip, 0.5), number)(image) for number in range(2)]
        with torch.no_grad():
            expected = encoder(PROCESSOR(images, return_tensors="pt")["pixel_values"])[0]
        assert len({tuple(features.flatten().tolist()) for features in expected}) == len(views)
        for one, features in zip(cached, expected, strict=True):
            torch.testing.assert_close(one[row]["image_features"], features)
        seen = set()
        for epoch in range(40):
            drawn.begin_epoch(3, epoch)
            found = drawn[row]
            seen |= {
                i for i, one in enumerate(cached) if torch.equal(one[row]["image_features"], found["image_features"])
            }
            assert found["captions"] == dataset[row]["captions"] and found["grid"] == (4, 4)
        assert seen == set(range(len(views)))


def test_the_view_of_an_image_does_not_depend_on_where_it_stands(dataset, tmp_path):
    encoder, view = tiny_model().vision_encoder, DrawnView(RandomView(False, 0.3), 1)
    assert len({view(image).size for image in dataset["image"]}) > 2  # images are cropped differently
    whole, part = (
        cache_features(rows, encoder, PROCESSOR, tmp_path, view=view) for rows in (dataset, dataset.select([4, 1]))
    )
    for place, row in enumerate([4, 1]):
        torch.testing.assert_close(part[place]["image_features"], whole[row]["image_features"])


class Row(torch.utils.data.Dataset):
    """Rows without images."""

    def __init__(self, value):
        self.value = value

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return {"value": self.value, "row": index}


def test_draws_are_those_of_seed_epoch_and_row():
    def read(seed, epoch, order=range(50)):
        drawn = OneOfViews([Row(value) for value in range(4)])
        drawn.begin_epoch(seed, epoch)
        found = {index: drawn[index] for index in order}
        assert all(row["row"] == index for index, row in found.items())
        return [found[index]["value"] for index in sorted(found)]

    first = read(0, 0)
    torch.manual_seed(1)
    np.random.seed(1)
    assert read(0, 0, order=reversed(range(50))) == first
    assert len({tuple(read(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert all(5 <= first.count(value) <= 20 for value in range(4))


@pytest.mark.parametrize("workers,persistent", [(0, False), (2, False), (2, True)])
def test_worker_processes_see_which_epoch_begins(workers, persistent):
    drawn = OneOfViews([Row(value) for value in range(4)])
    loader = DataLoader(drawn, batch_size=10, num_workers=workers, persistent_workers=persistent)
    for epoch in (0, 1, 2):
        drawn.begin_epoch(0, epoch)
        found = torch.cat([batch["value"] for batch in loader]).tolist()
        assert found == [int(np.random.default_rng([0, epoch, index]).integers(4)) for index in range(50)]


def test_pixels_are_seen_in_views(dataset):
    view = RandomView(True, 0.5)
    seen = RandomViews(dataset.add_column("index", list(range(6))), view)
    for epoch in (0, 3):
        seen.begin_epoch(5, epoch)
        for index in range(6):
            expected = view.draw(dataset[index]["image"], np.random.default_rng([5, epoch, index]))
            found = seen[index]
            assert found["image"].tobytes() == expected.tobytes() and found["image"].size == expected.size
            assert found["captions"] == dataset[index]["captions"] and found["index"] == index
