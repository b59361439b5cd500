"""The captioner in the box: a trained captioner of photographs that comes with the package."""

from pathlib import Path

PHOTOGRAPHS = str(Path(__file__).with_name("flickr8k"))
"""A folder as on the Hub, but for the code, which is the package's own. `flickr8k/README.md` is its card.

Examples:
    >>> import hf_captioner
    >>> from transformers import AutoModelForImageTextToText, AutoProcessor
    >>> from hf_captioner.checkpoints import PHOTOGRAPHS
    >>> model = AutoModelForImageTextToText.from_pretrained(PHOTOGRAPHS)
    >>> processor = AutoProcessor.from_pretrained(PHOTOGRAPHS)
    >>> model.config.describe(), len(processor.tokenizer) == model.config.vocab_size
    ('an RNN (LSTM, layers: 1, width 512) with soft additive attention', True)
"""

__all__ = ["PHOTOGRAPHS"]
