"""transformers' common model and configuration tests on the RNN captioners."""

import copy
import unittest

import torch
from transformers import ViTConfig

from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration, RnnCaptionerModel

from .model_testing import CaptionerModelTestMixin, ChoosingAttentionTestMixin


class RnnCaptionerModelTestMixin(CaptionerModelTestMixin):
    config_class = RnnCaptionerConfig
    base_class = RnnCaptionerModel
    head_class = RnnCaptionerForConditionalGeneration
    num_attention_heads = 1

    def _outputs(self, model_class, config, **kwargs):
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return model_class(copy.deepcopy(config)).eval()(**inputs, **kwargs)

    def test_attention_outputs(self):
        """The one layer that attends attends to the image: there are cross-attentions alone, of one layer."""
        tester = self.model_tester
        if not self.has_attentions:
            for model_class in self.all_model_classes:
                outputs = self._outputs(model_class, tester.get_config(), output_attentions=True)
                self.assertIsNone(outputs.cross_attentions)
            return
        shape = (tester.batch_size, self.num_attention_heads, tester.seq_length, tester.num_regions)
        asking = tester.get_config()
        asking.output_attentions = True
        for model_class in self.all_model_classes:
            plain = self._outputs(model_class, tester.get_config())
            self.assertIsNone(plain.cross_attentions)
            for outputs in (
                self._outputs(model_class, tester.get_config(), output_attentions=True),
                self._outputs(model_class, asking),
            ):
                self.assertEqual(set(outputs), {*plain, "cross_attentions"})
                (weights,) = outputs.cross_attentions
                self.assertEqual(weights.shape, shape)
                torch.testing.assert_close(weights.sum(-1), torch.ones(shape[:-1]))
            both = self._outputs(model_class, asking, output_hidden_states=True)
            self.assertEqual(set(both), {*plain, "decoder_hidden_states", "cross_attentions"})

    def test_hidden_states_output(self):
        """The embeddings and the last RNN layer's outputs; the image's side has its regions and no other states."""
        tester = self.model_tester
        shape = (tester.batch_size, tester.seq_length, tester.hidden_size)
        asking = tester.get_config()
        asking.output_hidden_states = True
        for model_class in self.all_model_classes:
            plain = self._outputs(model_class, tester.get_config())
            for outputs in (
                self._outputs(model_class, tester.get_config(), output_hidden_states=True),
                self._outputs(model_class, asking),
            ):
                self.assertEqual(set(outputs), {*plain, "decoder_hidden_states"})
                self.assertEqual([states.shape for states in outputs.decoder_hidden_states], [shape, shape])
                self.assertEqual(outputs.encoder_last_hidden_state.shape[:2], (tester.batch_size, tester.num_regions))

    def test_retain_grad_hidden_states_attentions(self):
        """
        Gradients reach the states that are returned, and flow back from the weights that are returned; those are the
        weights of all steps put side by side, on which the words do not depend.
        """
        outputs = self._outputs(
            self.base_class, self.model_tester.get_config(), output_hidden_states=True, output_attentions=True
        )
        states = [*outputs.decoder_hidden_states, outputs.encoder_last_hidden_state]
        for tensor in states:
            tensor.retain_grad()
        outputs.last_hidden_state[0, -1].sum().backward(retain_graph=True)
        for tensor in states:
            self.assertGreater(tensor.grad.abs().sum(), 0)
        if self.has_attentions and self.settings.get("attention_sampling") != "hard":  # a choice has no gradient
            states[-1].grad = None
            outputs.cross_attentions[0][0, :, -1, 0].sum().backward()
            self.assertGreater(states[-1].grad.abs().sum(), 0)

    def test_gradient_checkpointing_enable_disable(self):
        """As upstream's, which demands a module per checkpoint: here every step of one module is one."""
        model = self.head_class(self.model_tester.get_config())
        flags = {name for name, module in model.named_modules() if hasattr(module, "gradient_checkpointing")}
        self.assertTrue(any(name.startswith("model.decoder") for name in flags))
        for enable in (True, False):
            (model.gradient_checkpointing_enable if enable else model.gradient_checkpointing_disable)()
            self.assertEqual(model.is_gradient_checkpointing, enable)
            for name in flags:
                self.assertEqual(model.get_submodule(name).gradient_checkpointing, enable)

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        """As upstream's, which wants a module per checkpoint; here all gradients are compared."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        labels = inputs.pop("decoder_input_ids")
        gradients = []
        for checkpoints in (False, True):
            torch.manual_seed(0)
            model = self.head_class(copy.deepcopy(config)).train()
            if checkpoints:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=gradient_checkpointing_kwargs)
            torch.manual_seed(1)
            model(**inputs, labels=labels).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")

    def test_training_overfit(self):
        # The penalty on the attention stays above zero when there are fewer words than regions.
        self.model_tester.settings["doubly_stochastic_lambda"] = 0
        super().test_training_overfit()


class AdditiveLstmTest(RnnCaptionerModelTestMixin, unittest.TestCase):
    settings = {"attention": "additive", "cell": "lstm"}


class MultiHeadGruTest(RnnCaptionerModelTestMixin, unittest.TestCase):
    settings = {
        "attention": "multi_head",
        "num_attention_heads": 2,
        "cell": "gru",
        "num_layers": 2,
        "tie_word_embeddings": True,
    }
    num_attention_heads = 2


class HardDotLstmTest(RnnCaptionerModelTestMixin, unittest.TestCase):
    settings = {"attention": "dot", "attention_sampling": "hard"}


class NoAttentionLstmTest(RnnCaptionerModelTestMixin, unittest.TestCase):
    settings = {"attention": "none", "cell": "lstm"}
    has_attentions = False


class ViTAdditiveLstmTest(ChoosingAttentionTestMixin, RnnCaptionerModelTestMixin, unittest.TestCase):
    settings = {
        "vision_config": ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=8,
        )
    }
