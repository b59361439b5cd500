"""The page, as a file and in a real browser."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from testing.browser import fits

from hf_captioner.explain import ExplainedWord, Explanation, write_page
from hf_captioner.explain.pictures import AGAINST, FOR

NAME = "<script>alert(1)</script>\"'{{data}}.jpg"
WORDS = ["a", "</script><b>{{caption}}", "<!--<script>", "(end)"]


def explanation(words=WORDS, method="attention", size=(80, 40)) -> Explanation:
    """Word i looks at row i % 2, column i."""
    maps = []
    for place in range(len(words)):
        map_ = np.full((2, 4), 0.01)
        map_[place % 2, place % 4] = 0.93
        if method == "occlusion":
            map_[1 - place % 2, place % 4] = -0.5
        maps.append(map_)
    parts = tuple(
        ExplainedWord(word, 1 / (place + 2), tuple((f"other{place}{i}", 0.1 / 100**i) for i in range(5)), map_)
        for place, (word, map_) in enumerate(zip(words, maps, strict=True))
    )
    image = Image.effect_noise(size, 90).convert("RGB")
    return Explanation(image, "a <img src=x onerror=alert(2)> {{image}} {{data}}", parts, method)


@pytest.fixture
def page(tmp_path):
    write_page(tmp_path / "page.html", explanation(), NAME)
    return tmp_path / "page.html"


def test_the_page_is_one_file_and_nothing_in_it_is_taken_for_html(page):
    text = page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    assert text.count("</script>") == 2 and text.count("<img") == 1 and "<b>" not in text
    assert "&lt;img src=x onerror=alert(2)&gt; {{image}} {{data}}</h1>" in text
    assert "://" not in text and not re.search(r"(src|href)=\"(?!data:)", text)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["words"] == WORDS and data["maps"][2][0] == [0.01, 0.01, 0.93, 0.01]
    assert len(text) < 40_000


def colors_of(page) -> list[list[int]]:
    """The map as it is painted, cell by cell."""
    return page.evaluate(
        """() => {
            const canvas = document.querySelector("canvas");
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return [...Array(data.length / 4).keys()].map(i => [...data.slice(4 * i, 4 * i + 4)]);
        }"""
    )


def pressed(page) -> list[int]:
    buttons = page.locator("#words button")
    return [i for i in range(buttons.count()) if buttons.nth(i).get_attribute("aria-pressed") == "true"]


@pytest.mark.parametrize("width, dark", [(360, False), (1000, True)])
def test_words_are_stepped_through(open_page, page, width, dark):
    shown = open_page(page, width=width, dark=dark)
    assert shown.title() == f"Where the captioner looked: {NAME}"
    assert shown.locator("h1").inner_text() == "a <img src=x onerror=alert(2)> {{image}} {{data}}"
    assert shown.get_by_role("img", name=f"The image {NAME}").is_visible()
    assert shown.get_by_role("button").all_inner_texts() == WORDS
    assert pressed(shown) == [0] and shown.locator("#said").inner_text() == "a: 50.0 %"
    for place in (1, 2, 3, 0):  # round and round
        shown.keyboard.press("ArrowRight")
        assert pressed(shown) == [place]
        assert shown.locator("#said").inner_text() == f"{WORDS[place]}: {100 / (place + 2):.1f} %"
        lines = shown.locator("#others tr").all_inner_texts()
        assert [line.split("\t")[0] for line in lines] == [f"other{place}{i}" for i in range(5)]
        assert [line.split("\t")[1] for line in lines[:3]] == ["10.0 %", "0.1 %", "less than 0.1 %"]
        painted = colors_of(shown)
        assert painted[place % 2 * 4 + place] == [*FOR, 255] and len(painted) == 8
        assert all(color[3] < 5 for cell, color in enumerate(painted) if cell != place % 2 * 4 + place)
    shown.keyboard.press("ArrowLeft")
    assert pressed(shown) == [3]
    shown.get_by_role("button", name="(end)").press("Shift+Tab")  # the button before it
    assert pressed(shown) == [2]
    if width > 500:
        shown.get_by_role("button", name="a", exact=True).hover()
    else:
        shown.get_by_role("button", name="a", exact=True).tap()
    assert pressed(shown) == [0]
    assert fits(shown)
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)"
    )


def test_regions_name_the_words_that_looked_there(open_page, page):
    shown = open_page(page)
    looked = shown.locator("#words .looked")
    there = shown.locator("#there")
    shown.get_by_role("gridcell", name="Row 2, column 2").click()
    assert looked.all_inner_texts() == [WORDS[1]]
    assert there.inner_text() == f"Row 2, column 2: looked at for \u201c{WORDS[1]}\u201d."
    shown.keyboard.press("ArrowRight")  # the mouse leaves the keyboard with the words
    assert pressed(shown) == [1]
    grid = shown.get_by_role("grid")
    shown.locator("[role=gridcell][tabindex='0']").focus()
    assert grid.get_by_role("gridcell", selected=True).get_attribute("aria-label") == "Row 2, column 2"
    for key, place in (("ArrowUp", (1, 2)), ("ArrowUp", (1, 2)), ("ArrowRight", (1, 3)), ("ArrowDown", (2, 3))):
        shown.keyboard.press(key)
        assert grid.get_by_role("gridcell", selected=True).get_attribute("aria-label") == "Row {}, column {}".format(
            *place
        )
        assert looked.all_inner_texts() == ([WORDS[2]] if place == (1, 3) else [])
    assert there.inner_text() == "Row 2, column 3: no word looked mainly here."
    assert pressed(shown) == [1]
    box = shown.locator("#view").bounding_box()
    shown.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])  # where the picture has it
    assert there.inner_text().startswith("Row 2, column 4: looked at for \u201c(end)\u201d")
    assert box["width"] / box["height"] == pytest.approx(2, rel=0.01)  # the image's own aspect


def test_the_map_and_the_borders_are_shown_on_request(open_page, page):
    shown = open_page(page)
    canvas = shown.locator("canvas")
    assert canvas.is_visible() and canvas.evaluate("e => getComputedStyle(e).imageRendering") == "auto"
    shown.get_by_label("Region borders").check()
    assert canvas.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    cell = shown.get_by_role("gridcell").first
    assert cell.evaluate("e => getComputedStyle(e).boxShadow") != "none"
    shown.get_by_label("Map").uncheck()
    assert not canvas.is_visible()
    assert shown.locator("img").evaluate("e => getComputedStyle(e).filter") == "none"


def test_what_speaks_against_a_word_has_its_own_colour(open_page, tmp_path):
    write_page(tmp_path / "page.html", explanation(method="occlusion"), "photo.jpg")
    shown = open_page(tmp_path / "page.html")
    painted = colors_of(shown)
    assert painted[0] == [*FOR, 255]
    assert painted[4][3] == pytest.approx(255 * 0.5 / 0.93, abs=1) and painted[4][2] > 250  # premultiplied, rounded
    assert np.abs(np.subtract(painted[4][:3], AGAINST)).max() <= 2
    assert (
        shown.get_by_text("against the word").is_visible() and not shown.get_by_text("none", exact=True).is_visible()
    )


def test_a_long_caption_stays_within_a_phone(open_page, tmp_path):
    words = [f"word{place}" for place in range(60)] + ["x" * 300]
    write_page(tmp_path / "page.html", explanation(words, size=(30, 90)), "n" * 200 + ".jpg")
    shown = open_page(tmp_path / "page.html", width=320)
    assert fits(shown)
    for _ in range(60):
        shown.keyboard.press("ArrowRight")
    button = shown.get_by_role("button").nth(60)
    assert pressed(shown) == [60] and button.is_visible()
    box = button.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 320


def test_without_scripts_there_are_the_image_and_the_caption(browser, page):
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(page.as_uri())
    assert shown.locator("h1").is_visible() and shown.locator("img").is_visible()
    context.close()
