"""The faults that tests inject are counted, for the table in `docs/reliability.md` (`make faults`)."""

import json
import os
from pathlib import Path

import pytest
from testing.faults import Faults
from testing.fuzzing import FEW, MANY


@pytest.fixture
def faults(request) -> Faults:
    """Appends to the file that HF_CAPTIONER_FAULTS names, a JSON object a line; without it, the counts go nowhere."""
    name = os.environ.get("HF_CAPTIONER_FAULTS")

    def write(row: dict) -> None:
        if name:
            with Path(name).open(
                "a"
            ) as file:  # one short write, so the workers of pytest-xdist do not mix their lines
                file.write(json.dumps(row) + "\n")

    return Faults(write, request.node.nodeid)


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.long])], ids=["few", "many"])
def cases(request) -> int:
    """How many random inputs of each kind: a hundred in the normal run, ten thousand in the long one."""
    return request.param
