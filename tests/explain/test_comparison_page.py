"""The page that compares captioners, as a file and in a real browser."""

import base64
import json
import re

import numpy as np
import pytest
from PIL import Image
from testing.browser import fits

from hf_captioner.explain import ShownImage, ShownMaps, write_comparison_page

NASTY = "</script><b>$DATA $TITLE"


def difference(a, b, p):
    return {
        "a": a,
        "b": b,
        "difference": a - b,
        "interval_95": [a - b - 0.1, a - b + 0.1],
        "p": p,
        "p_holm": min(1, 2 * p),
        "wins": 2,
        "losses": 1,
        "ties": 7,
    }


@pytest.fixture
def page(tmp_path):
    agreement = {"same": 0.5, "word_overlap": 0.25, "mutual_cider_d": 3.0}
    summary = {
        "num_images": 10,
        "captioners": [{"name": name} for name in ("one", "other", NASTY)],
        "comparisons": [
            {
                "a": "one",
                "b": "other",
                "metrics": {"cider_d": difference(0.6, 0.3, 0.01), "chair_s": difference(0.2, 0.5, 0.5)},
                "agreement": agreement,
            },
            {"a": "one", "b": NASTY, "metrics": {"cider_d": difference(0.6, 0.6, 1.0)}, "agreement": agreement},
        ],
        "lower_is_better": ["chair_s"],
        "method": {"p": "p is two-sided"},
    }
    maps = np.zeros((2, 2, 4))
    maps[0, 0, 1] = maps[1, 1, 3] = 0.5
    images = [
        ShownImage(
            number,
            Image.new("RGB", (1600, 800), "red"),
            [f"a dog {number}", NASTY, ""],
            ["A dog.", "<img src=x>"],
            {"cider_d": [ahead, 0.5, 0.5], "chair_s": [0.0, float(number == 7), 0.0]},
            [ShownMaps(["a", "dog"], maps), None, None],
        )
        for number, ahead in ((3, 0.1), (7, 0.55), (5, 0.9))
    ]
    path = tmp_path / "comparison.html"
    write_comparison_page(path, f"one & {NASTY}", summary, images)
    return path


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1])


def test_the_page_escapes_and_needs_nothing_else(page):
    text = page.read_text("utf-8")
    assert text.count("</script>") == 2 and "<img src=x>" not in text and "<b>" not in text
    assert "<h1>one &amp; &lt;/script&gt;&lt;b&gt;" in text
    assert not re.search(r"https?://", text) and "default-src 'none'" in text
    data = data_of(page)
    assert data["images"][0]["captions"][1] == NASTY and data["images"][0]["references"][1] == "<img src=x>"
    maps = data["images"][0]["maps"]
    assert maps[1:] == [None, None] and maps[0]["grid"] == [2, 4]
    assert list(base64.b64decode(maps[0]["maps"])) == [0, 255, 0, 0, 0, 0, 0, 0] + [0] * 7 + [255]


def test_pictures_are_small(page):
    """Whatever the size of the images: the page's own is bounded."""
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 255, (2000, 3000, 3), np.uint8))
    shown = ShownImage(1, noise, ["a", "b"], ["c"], {"cider_d": [0.0, 1.0]}, [None, None])
    summary = dict.fromkeys(("captioners", "comparisons", "lower_is_better", "method", "num_images"), [])
    write_comparison_page(page, "noise", summary, [shown])
    kind, content = data_of(page)["images"][0]["picture"].split(",")
    assert kind == "data:image/jpeg;base64" and len(content) < 60_000  # noise is the largest that there is


@pytest.mark.parametrize("width,dark", [(360, False), (1000, True)])
def test_the_page_in_a_browser(page, open_page, width, dark):
    opened = open_page(page, width=width, height=700, dark=dark)
    articles = opened.locator("article")
    verdict = opened.locator("#verdict")

    def order():
        return [int(re.match(r"Image (\d+)", title)[1]) for title in articles.locator("h2").all_inner_texts()]

    def focused():
        return opened.locator(":focus")

    assert order() == [5, 7, 3] and "one ahead by 0.4000" in articles.locator("h2").first.inner_text()
    # What counts is p after Holm's correction, for there are two pairs.
    assert "difference +0.3000" in verdict.inner_text()
    assert "p 0.0200 after Holm's correction." in verdict.inner_text()
    opened.select_option("#order", "second")
    assert order() == [3, 7, 5]
    opened.select_option("#order", "near")
    assert order() == [7, 3, 5]
    opened.select_option("#order", "first")

    # keys alone: a metric by its button, the next image, its words
    opened.locator("tbody button", has_text="chair_s").press("Enter")
    assert order()[0] == 7 and "one ahead by 1.0000" in articles.locator("h2").first.inner_text()  # lower is better
    assert focused().inner_text() == "chair_s" and "it may be chance" in verdict.inner_text()
    for key in "jjk":
        opened.keyboard.press(key)
    first = articles.first
    assert first.evaluate("element => element === document.activeElement")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Tab")
    word = focused()
    assert word.inner_text() == "dog" and word.get_attribute("aria-pressed") == "true"
    canvas = first.locator("canvas")
    assert canvas.is_visible()

    def pixel(x, y):
        return canvas.evaluate(f"canvas => [...canvas.getContext('2d').getImageData({x}, {y}, 1, 1).data]")

    assert pixel(140, 60) == [255, 234, 70, 255]  # the map's largest value
    assert pixel(60, 20) == [0, 34, 78, 255]
    opened.keyboard.press("Escape")
    assert not canvas.is_visible()

    assert NASTY in first.inner_text()
    opened.select_option("#pair", "1")
    assert opened.locator("thead th").all_inner_texts()[:3] == ["metric", "one", NASTY]
    assert articles.locator(".said p").first.inner_text() == "(no words)"
    assert fits(opened)
    colors = [opened.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")]
    lightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors]
    assert (lightness[0] > lightness[1]) == dark
