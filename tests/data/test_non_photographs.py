"""Generated images that are no photographs."""

import numpy as np
import pytest

from hf_captioner.data.non_photographs import NON_PHOTOGRAPHS, non_photographs
from hf_captioner.errors import InputError


@pytest.mark.parametrize("kind", NON_PHOTOGRAPHS)
def test_every_kind_is_drawn_from_its_seed(kind):
    first, again = ([np.asarray(image) for image in non_photographs(kind, rows, seed=3)] for rows in (6, 4))
    for one, two in zip(first, again, strict=False):
        assert np.array_equal(one, two)
    assert len({image.tobytes() for image in first}) >= 4
    other = np.asarray(non_photographs(kind, 1, seed=4)[0])
    assert any(not np.array_equal(image, other) for image in first)


def test_text_stays_on_the_page_and_blank_is_blank():
    for image in non_photographs("text", 12):
        edge = np.asarray(image).astype(int)[:, -2:]
        assert np.ptp(edge[..., 0]) == 0
    for image in non_photographs("blank", 12):
        pixels = np.asarray(image).astype(int)
        assert abs(np.diff(pixels, axis=0)).max() <= 2 and abs(np.diff(pixels, axis=1)).max() <= 2


def test_what_is_not_known_is_refused():
    with pytest.raises(InputError, match="`kind` must be one of shapes, noise, text, blank, got 'dog'"):
        non_photographs("dog", 1)
    with pytest.raises(InputError, match="`rows` must be at least 1, got 0"):
        non_photographs("noise", 0)
