"""transformers' common model and configuration tests on the Transformer captioners."""

import unittest

from testing.tiny_models import tiny_vit

from hf_captioner import (
    TransformerCaptionerConfig,
    TransformerCaptionerForConditionalGeneration,
    TransformerCaptionerModel,
)

from .model_testing import CaptionerModelTestMixin, ChoosingAttentionTestMixin

_SIZES = {"num_attention_heads": 2, "encoder_layers": 2, "decoder_layers": 2, "intermediate_size": 24}


class TransformerCaptionerModelTestMixin(CaptionerModelTestMixin):
    config_class = TransformerCaptionerConfig
    base_class = TransformerCaptionerModel
    head_class = TransformerCaptionerForConditionalGeneration

    def setUp(self):
        super().setUp()
        tester = self.model_tester
        tester.num_hidden_layers = 2
        tester.encoder_seq_length = tester.key_length = tester.num_regions

    def test_retain_grad_hidden_states_attentions(self):
        """
        Gradients reach the states that are returned, and the weights over words and between regions; they flow back
        from the weights over regions, which are returned row by row but used image by image.
        """
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = self.base_class(config).eval()(**inputs, output_hidden_states=True, output_attentions=True)
        tensors = [outputs.encoder_hidden_states[0], outputs.decoder_hidden_states[0], outputs.decoder_attentions[0]]
        if config.encoder_layers:
            tensors.append(outputs.encoder_attentions[0])
        for tensor in tensors:
            tensor.retain_grad()
        outputs.last_hidden_state[0, -1, 0].backward(retain_graph=True)
        for tensor in tensors:
            self.assertGreater(tensor.grad.abs().sum(), 0)
        tensors[0].grad = None
        outputs.cross_attentions[0][0, :, -1, 0].sum().backward()
        self.assertGreater(tensors[0].grad.abs().sum(), 0)


class CnnTransformerTest(TransformerCaptionerModelTestMixin, unittest.TestCase):
    settings = _SIZES


class CnnTransformerPreLearnedTest(TransformerCaptionerModelTestMixin, unittest.TestCase):
    settings = {**_SIZES, "norm": "pre", "position_embedding_type": "learned"}


class VitEncoderTransformerTest(ChoosingAttentionTestMixin, TransformerCaptionerModelTestMixin, unittest.TestCase):
    settings = {**_SIZES, "vision_config": tiny_vit()}


class VitTransformerTest(ChoosingAttentionTestMixin, TransformerCaptionerModelTestMixin, unittest.TestCase):
    settings = {**_SIZES, "vision_config": tiny_vit(), "encoder_layers": 0}
