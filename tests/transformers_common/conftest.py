"""Skips what `not_applicable.py` lists."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

from .not_applicable import NOT_APPLICABLE

# Marks of transformers' own test suite, which its configuration declares.
UPSTREAM_MARKS = (
    "accelerate_tests",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "generate",
    "is_training_test",
    "order",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in UPSTREAM_MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' own tests")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        for pattern, reason in NOT_APPLICABLE.get(item.path.stem, {}).items():
            if fnmatch(f"{item.cls.__name__}::{item.name}" if "::" in pattern else item.name, pattern):
                item.add_marker(pytest.mark.skip(reason=reason))
