"""transformers' common tokenizer tests on both kinds of trained tokenizer."""

import shutil
import tempfile
import unittest

from transformers import TokenizersBackend

from hf_captioner import train_tokenizer

from . import upstream  # noqa: F401  isort: skip
from transformers_tests.test_tokenization_common import TokenizerTesterMixin  # isort: skip
from transformers_tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin  # isort: skip

CAPTIONS = [
    "A small red circle is above a large blue square.",
    "Two dogs run after a ball; one of them wears a green collar.",
    "A man in a hat (and his friend) wait for the bus at 10 o'clock, don't they?",
    "This is the first sentence and this one is different: hello world, how are you doing!",
]


class CaptionTokenizerTestMixin(TokenizerTesterMixin, TokenizersBackendTesterMixin):
    """Subclasses set `kind`."""

    tokenizer_class = rust_tokenizer_class = TokenizersBackend
    kind: str

    @classmethod
    def setUpClass(cls):
        cls.trained = tempfile.mkdtemp()
        train_tokenizer(CAPTIONS, kind=cls.kind, vocab_size=400).save_pretrained(cls.trained)
        cls.from_pretrained_id = cls.trained
        super().setUpClass()

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.trained)


class WordTokenizerTest(CaptionTokenizerTestMixin, unittest.TestCase):
    kind = "word"


class BpeTokenizerTest(CaptionTokenizerTestMixin, unittest.TestCase):
    kind = "bpe"
