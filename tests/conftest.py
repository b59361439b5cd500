"""Fixtures of all rooms."""

from pathlib import Path

import pytest
import torch
from testing import DATA


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
