"""transformers' common processor tests, with their text as the beginning of captions and as captions to learn."""

import unittest
from unittest.mock import patch

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer

from . import upstream  # noqa: F401  isort: skip
from transformers_tests.test_processing_common import ProcessorTesterMixin  # isort: skip


class CaptionerProcessorTestMixin(ProcessorTesterMixin):
    processor_class = CaptionerProcessor

    def setUp(self):
        # A class that saves its code writes `auto_map` into the instance it saves, and loading drops it again, in any
        # processor of transformers: tests that compare the two would only see that.
        code = patch.object(self.processor_class, "_auto_class", None)
        code.start()
        self.addCleanup(code.stop)

    @classmethod
    def _setup_image_processor(cls):
        return CaptionerImageProcessor(size={"height": 20, "width": 20})

    @classmethod
    def _setup_tokenizer(cls):
        captions = ["lower newer", "upper older longer string"]
        return train_tokenizer(captions, kind="bpe", vocab_size=270, model_max_length=256)

    def test_model_input_names(self):
        processor = CaptionerProcessor.from_pretrained(self.tmpdirname)
        # The mask is there only for prompts of different lengths.
        images, prompts = self.prepare_images_inputs(batch_size=2), ["lower", "lower newer"]
        inputs = processor(images=images, text=prompts, text_target=["newer", "older"], return_tensors="pt")
        self.assertEqual(list(inputs), processor.model_input_names)


class CaptionerProcessorPromptTest(CaptionerProcessorTestMixin, unittest.TestCase):
    """`text`: the beginning of captions."""

    text_input_name = "decoder_input_ids"


class TextTargetProcessor(CaptionerProcessor):
    """Takes the text that transformers' tests give it for captions to learn."""

    def __call__(self, images=None, text=None, **kwargs):
        return super().__call__(images=images, text_target=text, **kwargs)


class CaptionerProcessorTargetTest(CaptionerProcessorTestMixin, unittest.TestCase):
    """`text_target`: captions to learn."""

    processor_class = TextTargetProcessor
    text_input_name = "labels"
