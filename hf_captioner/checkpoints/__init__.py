"""The captioner in the box: a trained captioner of photographs that comes with the package."""

from pathlib import Path

PHOTOGRAPHS = str(Path(__file__).with_name("flickr8k"))
"""A folder as on the Hub, but for the code, which is the package's own. `flickr8k/README.md` is its card."""

__all__ = ["PHOTOGRAPHS"]
