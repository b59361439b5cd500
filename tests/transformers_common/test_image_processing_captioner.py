"""transformers' common image processor tests on the one class that chooses its backend."""

import unittest

from transformers.utils import is_torchvision_available

from hf_captioner import CaptionerImageProcessor

from . import upstream  # noqa: F401  isort: skip
from transformers_tests.test_image_processing_common import (  # isort: skip
    ImageProcessingTester,
    ImageProcessingTestMixin,
)


SETTINGS = {
    "size": {"height": 20, "width": 18},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 128,
    "do_normalize": True,
    "do_convert_rgb": True,
}


class CaptionerImageProcessingTester(ImageProcessingTester):
    batch_size = 3
    num_channels = 3
    min_resolution = 30
    max_resolution = 80
    size = SETTINGS["size"]

    def __init__(self):
        pass  # upstream's looks for a model of transformers that is named like this file's folder

    def prepare_image_processor_dict(self):
        return dict(SETTINGS)


class CaptionerImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processing_classes = {"torchvision" if is_torchvision_available() else "pil": CaptionerImageProcessor}
    image_processor_dict = SETTINGS

    def setUp(self):
        self.image_processor_tester = CaptionerImageProcessingTester()
