"""Fixtures of all rooms."""

from pathlib import Path

import pytest
import torch
from testing import DATA
from testing.browser import Pages, chromium


@pytest.fixture
def data_folder() -> Path:
    """Photographs and pretrained vision weights, where a machine has them."""
    if not DATA.is_dir():
        pytest.skip(f"no photographs at {DATA}; set HF_CAPTIONER_DATA")
    return DATA


@pytest.fixture
def double():
    """Double precision, so that an equation written twice gives the same number and not only a similar one."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")  # not the session: while it is open, `asyncio.run` is refused everywhere
def browser():
    """Chromium, driven by playwright; skips where there is none."""
    with chromium() as found:
        yield found


@pytest.fixture
def open_page(browser):
    """
    `open_page(path_or_url, width=1000, height=800, dark=False)` gives a playwright `Page`. The test fails at its end
    if a page had an error or asked for anything outside of itself; clear `open_page.errors` where one is expected.
    """
    pages = Pages(browser)
    yield pages
    pages.close()
    assert not pages.errors, pages.errors
    assert not pages.outside, pages.outside
