"""What drives pages in other tests sees what goes wrong in them."""

import pytest
from testing.browser import Pages, fits

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><p>{}</p><script>{}</script>"""


def test_errors_and_requests_of_a_page_are_seen(browser, tmp_path):
    file = tmp_path / "page.html"
    pages = Pages(browser)
    file.write_text(PAGE.format("<img src='http://localhost:9/a.png'>", "console.error('said'); throw 'thrown'"))
    pages(file).wait_for_timeout(100)
    pages.close()
    assert "said" in pages.errors and "thrown" in pages.errors
    assert pages.outside == ["http://localhost:9/a.png"]


@pytest.mark.parametrize("width, dark", [(360, True), (1000, False)])
def test_a_page_is_opened_as_wished(open_page, tmp_path, width, dark):
    file = tmp_path / "page.html"
    file.write_text(PAGE.format("<span style='display: block; width: 800px'>wide</span>", ""))
    page = open_page(file, width=width, dark=dark)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert page.evaluate("navigator.maxTouchPoints > 0") is (width == 360)
    assert fits(page) is (width == 1000)
