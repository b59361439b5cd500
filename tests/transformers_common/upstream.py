"""Makes transformers' common tests importable as `transformers_tests`; a module that imports this needs them."""

import sys

import pytest

from .fetch import PACKAGE, ROOT

if not PACKAGE.is_dir():
    pytest.skip(
        f"no tests of transformers at {ROOT}: run `python tests/transformers_common/fetch.py` or `make test` once",
        allow_module_level=True,
    )
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
