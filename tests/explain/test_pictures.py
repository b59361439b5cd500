"""Pictures: what is where, whether everybody can read it, and words that are not what they seem."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_captioner.explain import ExplainedWord, Explanation, overlay, save_animation, save_grid

# What people without the red or the green cones see of linear red, green and blue (Machado et al. 2009).
COLOR_VISION = {
    "all": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
    "achromatopsia": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}


def seen(color, vision: str) -> np.ndarray:
    """CIE L*a*b* of a colour (red, green, blue to 255), as a person sees it."""
    values = np.asarray(color, dtype=float)[:3] / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (COLOR_VISION[vision] @ linear).clip(0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    scaled = xyz / [0.9505, 1, 1.089]
    root = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def explanation(size=(60, 30), words=("a", "dog", "(end)"), method="attention") -> Explanation:
    generator = np.random.default_rng(0)
    maps = [np.eye(8)[place % 8].reshape(2, 4) + generator.random((2, 4)) / 9 for place in range(len(words))]
    parts = tuple(ExplainedWord(word, 0.5, (("cat", 0.25),), map_) for word, map_ in zip(words, maps, strict=True))
    return Explanation(Image.new("RGB", size, (90, 120, 60)), " ".join(words), parts, method)


@pytest.mark.parametrize("vision", COLOR_VISION)
@pytest.mark.parametrize("ground", ["black", "white", "red", "green", "blue", "yellow", "grey"])
def test_the_scale_is_read_with_any_colour_vision(ground, vision):
    """Steps of a fifth are told apart, in order, and what speaks for a word from what speaks against it."""
    weights = np.array([np.linspace(-1, 1, 11)])
    painted = overlay(Image.new("RGB", (110, 10), ground), weights, borders=True)
    colors = [seen(painted.getpixel((10 * cell + 5, 5)), vision) for cell in range(11)]
    light = np.array(colors)[:, 0]
    assert (np.diff(light[5:]) > 2.3).all()  # a difference that is just noticed is about 2.3
    assert np.linalg.norm(colors[0] - colors[-1]) > 30 and light[-1] - light[0] > 25


def test_a_map_lies_over_its_part_of_the_image():
    weights = np.zeros((2, 4))
    weights[1, 2] = 3
    painted = overlay(Image.new("RGB", (80, 30), "white"), weights, borders=True)
    assert painted.size == (80, 30)
    assert painted.getpixel((50, 22)) == (255, 214, 10) and painted.getpixel((30, 22)) == (153, 153, 153)
    assert painted.getpixel((40, 5)) == painted.getpixel((5, 15)) == (128, 128, 128)  # borders
    smooth = overlay(Image.new("RGB", (80, 30), "white"), weights)
    assert smooth.getpixel((40, 22)) not in ((153, 153, 153), (255, 214, 10))
    assert smooth.getpixel((5, 5)) == (153, 153, 153)
    assert overlay(Image.new("L", (8, 3)), np.zeros((2, 2))).getpixel((0, 0)) == (0, 0, 0)  # no division by zero


@pytest.mark.parametrize("name", ["grid.png", "grid.pdf", "grid.WEBP"])
def test_a_grid_has_a_panel_for_every_word(tmp_path, name, monkeypatch):
    titles, panels = [], []
    kept = Figure.savefig

    def savefig(figure, *args, **kwargs):
        for axes in figure.axes:
            titles.append(axes.get_title())
            panels.extend((axes.get_position().width * figure.get_figwidth(), image) for image in axes.images)
        kept(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    both = [explanation(words=("a", "$x^{$", "(end)")), explanation((30, 60), ("<b>", "_"))]
    save_grid(tmp_path / name, both, columns=4)
    assert titles == ["", "a", "$x^{$", "(end)", "", "<b>", "_", ""]
    assert [image.get_array().shape[:2] for _, image in panels] == [(30, 60)] * 4 + [(60, 30)] * 3
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith("png"):
        assert Image.open(tmp_path / name).format == "PNG"


def test_an_animation_has_a_frame_for_every_word(tmp_path):
    one = explanation((60, 30), ("a", "dog", "Hündchen", "собака", "(end)"))
    save_animation(tmp_path / "words.webp", one, milliseconds=500, side=240)
    with Image.open(tmp_path / "words.webp") as picture:
        assert picture.format == "WEBP" and picture.n_frames == 5 and picture.info["loop"] == 0
        assert picture.width == 240 and picture.height > 120
        frames = []
        for index in range(5):
            picture.seek(index)
            picture.load()
            assert picture.info["duration"] == 500
            frames.append(np.asarray(picture.convert("RGB"), dtype=int))
    assert all(np.abs(a - b).max() > 60 for a, b in zip(frames, frames[1:], strict=False))
    for index, frame in enumerate(frames[:4]):  # the map is where it belongs: its cell is the brightest
        cells = frame[:120].reshape(2, 60, 4, 60, 3)[..., 0].mean((1, 3))
        assert np.unravel_index(cells.argmax(), cells.shape) == (0, index)


def test_a_long_caption_is_set_in_lines(tmp_path):
    words = tuple(f"word{index}" for index in range(14)) + ("x" * 60,)
    save_animation(tmp_path / "words.webp", explanation((60, 30), words), side=240)
    with Image.open(tmp_path / "words.webp") as picture:
        assert picture.n_frames == 15 and picture.height > 120 + 4 * 24
    save_grid(tmp_path / "words.png", [explanation((60, 30), words)])
    assert Image.open(tmp_path / "words.png").height > 200


def test_matplotlib_keeps_its_settings(tmp_path):
    before = dict(matplotlib.rcParams)
    save_grid(tmp_path / "grid.png", [explanation()])
    assert dict(matplotlib.rcParams) == before
