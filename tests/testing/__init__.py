"""What tests of several rooms need: tiny captioners, slow references, a Hub on this machine."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HF_CAPTIONER_DATA", ROOT.parent / "shared" / "data"))
PATIENCE = float(os.environ.get("HF_CAPTIONER_PATIENCE", 1))  # times as long as usual, on a machine that is busy
