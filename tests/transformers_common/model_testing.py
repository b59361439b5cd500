"""What both captioner families need so that transformers' common model tests can run on them."""

import copy
import tempfile
from unittest.mock import patch

import torch
from testing.tiny_models import IMAGE, VOCAB, random_images, tiny_vision
from transformers.models.auto import modeling_auto

from . import upstream  # noqa: F401  isort: skip
from transformers_tests.test_configuration_common import ConfigTester  # isort: skip
from transformers_tests.test_modeling_common import ModelTesterMixin  # isort: skip
from transformers_tests.test_training_mixin import TrainingTesterMixin  # isort: skip


class CaptionerModelTester:
    """Tiny captioners and batches for them: images, and tokens that are shown to the decoder."""

    is_training = True
    batch_size = 3
    seq_length = 5
    hidden_size = 16
    num_attention_heads = 2
    image_size = IMAGE
    num_regions = 16  # of 32 x 32 pixels, for `tiny_vision()` and for patches of 8 pixels

    def __init__(self, config_class, settings):
        self.config_class = config_class
        self.settings = {
            "vision_config": tiny_vision(),
            "vocab_size": VOCAB,
            "hidden_size": self.hidden_size,
            "dropout": 0.0,
            **settings,
        }
        self.with_input_ids = False

    def get_config(self):
        return self.config_class(**copy.deepcopy(self.settings))

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(4, VOCAB, (self.batch_size, self.seq_length))
        inputs = {"pixel_values": random_images(self.batch_size), "decoder_input_ids": ids}
        if self.with_input_ids:
            inputs["input_ids"] = ids
        return self.get_config(), inputs


class CaptionerModelTestMixin(TrainingTesterMixin, ModelTesterMixin):
    """
    transformers' tests of one configuration of one family.

    Subclasses set `config_class`, `base_class`, `head_class` and, in `settings`, the fields of the configuration.
    """

    config_class = base_class = head_class = None
    settings: dict = {}
    model_tester = None
    is_encoder_decoder = True
    test_can_init_all_missing_weights_before_2023 = True  # else skipped: our files have no year of copyright
    training_overfit_steps = 100
    training_overfit_seq_length = 8
    training_overfit_learning_rate = 2e-2

    @property
    def all_model_classes(self):
        return self.base_class, self.head_class

    def setUp(self):
        torch.manual_seed(0)
        self.model_tester = CaptionerModelTester(self.config_class, self.settings)
        # Where transformers' tests look up what kind of model a class is.
        for table, model_class in (
            ("MODEL_MAPPING_NAMES", self.base_class),
            ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", self.head_class),
        ):
            names = patch.dict(getattr(modeling_auto, table), {self.config_class.model_type: model_class.__name__})
            names.start()
            self.addCleanup(names.stop)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        inputs.pop("input_ids", None)
        return inputs

    def test_config(self):
        ConfigTester(self, config_class=self.config_class, hidden_size=16).run_common_tests()

    def _use_input_ids(self):
        """For tests that write ids near the vocabulary's end into `input_ids` and make 3 the padding's id."""
        self.model_tester.with_input_ids = True
        self.model_tester.settings["eos_token_id"] = 0  # the configuration refuses padding that is an end

    def test_resize_tokens_embeddings(self):
        self._use_input_ids()
        super().test_resize_tokens_embeddings()

    def test_resize_embeddings_untied(self):
        self._use_input_ids()
        super().test_resize_embeddings_untied()

    def test_tied_weights_keys(self):
        """Upstream's passes where nothing is tied at all."""
        super().test_tied_weights_keys()
        for tie in (True, False):
            config = self.model_tester.get_config()
            config.tie_word_embeddings = tie
            model = self.head_class(config)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                models = model, self.head_class.from_pretrained(folder)
            for model in models:
                for size in (VOCAB, VOCAB + 3):
                    model.resize_token_embeddings(size)
                    self.assertEqual(model.lm_head.weight is model.get_input_embeddings().weight, tie)
                    self.assertEqual(model.lm_head.weight.shape[0], size)

    def test_model_forward_default_config_values(self):
        """As upstream's, but for setting all special ids to 0: the configuration refuses padding that is an end."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        settings = config.to_diff_dict()
        for name in ("pad_token_id", "eos_token_id", "bos_token_id", "tie_word_embeddings"):
            settings.pop(name, None)
        config = self.config_class(**settings)
        for model_class in self.all_model_classes:
            with torch.no_grad():
                model_class(config).eval()(**inputs)

    # Upstream overfits language models only: here the tokens are captions of two images.

    def _get_model_modality(self):
        return "text"

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        captions = torch.arange(4, 4 + seq_length).repeat(batch_size, 1)
        captions[:, 0] = self.model_tester.get_config().decoder_start_token_id
        return {"pixel_values": random_images(batch_size), "input_ids": captions, "labels": captions[:, 1:]}

    def _get_trainable_model_class(self):
        class Captioner(self.head_class):
            def forward(self, input_ids=None, **kwargs):
                """Upstream's batches have `input_ids`; a captioner makes its own from the labels."""
                return super().forward(**kwargs)

            def generate(self, prompts, **kwargs):
                return super().generate(pixel_values=random_images(2)[:1], decoder_input_ids=prompts, **kwargs)

        return Captioner


class ChoosingAttentionTestMixin:
    """For a vision model with attention of its own, whose implementation can be chosen."""

    _is_composite = True

    def _implementations(self, model):
        return model.config._attn_implementation, model.vision_encoder.model.config._attn_implementation

    def test_attn_implementation_composite_models(self):
        """As upstream's, of which a part supposes a configuration for the text alone."""
        for model_class in self.all_model_classes:
            config = self.model_tester.get_config()
            config._attn_implementation = {"": "eager", "vision_config": "sdpa"}
            model = model_class(config)
            self.assertEqual(self._implementations(model), ("eager", "sdpa"))
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                loaded = model_class.from_pretrained(
                    folder, attn_implementation={"": "sdpa", "vision_config": "eager"}
                )
            self.assertEqual(self._implementations(loaded), ("sdpa", "eager"))

    def test_sdpa_can_dispatch_composite_models(self):
        """As upstream's, which looks for the vision model under other names."""
        for model_class in self.all_model_classes:
            with tempfile.TemporaryDirectory() as folder:
                model_class(self.model_tester.get_config()).save_pretrained(folder)
                self.assertEqual(self._implementations(model_class.from_pretrained(folder)), ("sdpa", "sdpa"))
                eager = model_class.from_pretrained(folder, attn_implementation="eager")
            self.assertEqual(self._implementations(eager), ("eager", "eager"))
            for module in eager.modules():
                if type(module).__name__.endswith("Attention"):
                    self.assertEqual(module.config._attn_implementation, "eager")
