"""
Pages in a real browser: Chromium without a window, driven by playwright. The fixtures `browser` and `open_page` are in
`tests/conftest.py`; where there is no Chromium (`make browser` installs one), tests that ask for them are skipped.

    def test_the_page(open_page, tmp_path):
        page = open_page(tmp_path / "page.html", width=360, dark=True)
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("button", name="dog").is_visible()
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator:
    """
    A playwright `Browser`: the machine's own Chromium, or else the one that playwright installed. Skips the test, with
    the reason, without either.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright, which drives the browser")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium; `make browser` installs it")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Pages:
    """
    Opens pages, and knows what went wrong in them.

    Attributes:
        errors: uncaught errors and errors in the console of all pages.
        outside: what was asked of the network, files and the page's own server apart.
    """

    def __init__(self, browser):
        self.browser = browser
        self.contexts: list = []
        self.errors: list[str] = []
        self.outside: list[str] = []

    def __call__(self, address: str | Path, width: int = 1000, height: int = 800, dark: bool = False):
        """
        Args:
            address: a file, or a URL.
            width, height: of the window in CSS pixels; below 500 it is a phone with a touch screen.
            dark: whether the user prefers dark colours.

        Returns:
            a playwright `Page`, loaded.
        """
        phone = width < 500
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=phone,
            is_mobile=phone,
        )
        self.contexts.append(context)
        page = context.new_page()
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        own = (urlsplit(url).scheme, urlsplit(url).netloc)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: self.note(request.url, own))
        page.goto(url)
        return page

    def note(self, url: str, own: tuple[str, str]) -> None:
        there = urlsplit(url)
        if there.scheme not in ("data", "blob") and (there.scheme, there.netloc) != own:
            self.outside.append(url)

    def close(self) -> None:
        for context in self.contexts:
            context.close()


def fits(page) -> bool:
    """
    Whether a page is no wider than its window, so that nothing is to be scrolled sideways. A phone's browser makes its
    window as wide as what is in it and shows it smaller, so it is the width asked for that counts.
    """
    return page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
