"""The tokens that the COCO caption evaluation scores, without Java."""

import re
from collections.abc import Iterable

_TOKEN = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|[a-z0-9]+?(?=n't\b)|[\w]+(?:[-.'&/][\w]+)*|\$|%|#|&|@")


def tokenize(captions: Iterable[str]) -> list[list[str]]:
    return [_TOKEN.findall(caption.lower()) for caption in captions]
