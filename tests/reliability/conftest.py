"""The faults that tests inject are counted, for the table in `docs/reliability.md` (`make faults`)."""

import json
import os
from pathlib import Path

import pytest
from testing.faults import Faults


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
