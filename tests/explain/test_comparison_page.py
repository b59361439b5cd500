"""The page that compares captioners, as a file and in a real browser."""

import base64
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from hf_captioner.explain import ShownImage, ShownMaps, write_comparison_page

CHROMIUM = shutil.which("chromium")
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


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; `make browser` installs it")
@pytest.mark.parametrize("width,scheme", [(360, "light"), (1000, "dark")])
def test_the_page_in_a_browser(page, tmp_path, width, scheme):
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium; `make browser` installs it")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    driver_path = shutil.which("chromedriver")
    if driver_path is None:
        pytest.skip("no chromedriver; `make browser` installs it")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    try:
        metrics = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(page.as_uri())

        def find(selector):
            return browser.find_elements(By.CSS_SELECTOR, selector)

        def order():
            return [int(re.match(r"Image (\d+)", title.text)[1]) for title in find("article h2")]

        def choose(name, value):
            Select(browser.find_element(By.ID, name)).select_by_value(value)

        body = browser.find_element(By.TAG_NAME, "body")
        verdict = browser.find_element(By.ID, "verdict")
        assert order() == [5, 7, 3] and "one ahead by 0.4000" in find("article h2")[0].text
        # What counts is p after Holm's correction, for there are two pairs.
        assert "difference +0.3000" in verdict.text and "p 0.0200 after Holm's correction." in verdict.text
        choose("order", "second")
        assert order() == [3, 7, 5]
        choose("order", "near")
        assert order() == [7, 3, 5]
        choose("order", "first")

        # keys alone: a metric by its button, the next image, its words
        button = next(found for found in find("tbody button") if found.text == "chair_s")
        button.send_keys(Keys.ENTER)
        assert order()[0] == 7 and "one ahead by 1.0000" in find("article h2")[0].text  # lower is better
        assert browser.switch_to.active_element.text == "chair_s" and "it may be chance" in verdict.text
        for key in "jjk":
            body.send_keys(key)
        first = find("article")[0]
        assert browser.switch_to.active_element == first
        browser.switch_to.active_element.send_keys(Keys.TAB, Keys.TAB)
        assert browser.switch_to.active_element.text == "dog"
        word = browser.switch_to.active_element
        assert word.get_attribute("aria-pressed") == "true"
        pixel = "return [...arguments[0].getContext('2d').getImageData(%d, %d, 1, 1).data]"
        canvas = first.find_element(By.TAG_NAME, "canvas")
        assert canvas.is_displayed()
        assert browser.execute_script(pixel % (140, 60), canvas) == [255, 234, 70, 255]  # the map's largest value
        assert browser.execute_script(pixel % (60, 20), canvas) == [0, 34, 78, 255]
        word.send_keys(Keys.ESCAPE)
        assert not canvas.is_displayed()

        assert NASTY in first.text
        choose("pair", "1")
        assert [title.text for title in find("thead th")][:3] == ["metric", "one", NASTY]
        assert find("article .said p")[0].text == "(no words)"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        colors = [
            browser.execute_script(f"return getComputedStyle(document.body).{n}") for n in ("color", "background")
        ]
        lightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors]
        assert (lightness[0] > lightness[1]) == (scheme == "dark")
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.quit()
