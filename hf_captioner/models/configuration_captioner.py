"""What the configurations of both captioner families share."""

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME
from transformers.utils.quantization_config import QuantizationConfigMixin

from .bounds_captioner import MAX_LABELS, MAX_VOCABULARY, MAX_WIDTH, check_size, check_vision_settings

# What transformers and Python raise for a value that they do not expect; a configuration has one error for all.
_SURPRISES = (ArithmeticError, AttributeError, LookupError, RecursionError, StrictDataclassError, TypeError)
# Of fields that transformers takes although they are none of ours: what they may be. It reads the others as
# configurations of further models.
_KINDS = {
    "_attn_implementation": (str, dict),
    "attn_implementation": (str, dict),
    "num_labels": (int,),
    "per_layer_config": (dict,),
    "quantization_config": (dict, QuantizationConfigMixin),
}
_OTHER_CONFIGS = ("decoder", "generator", "text_config")
# "file.Class", behind the repository that has the file where it is another: what `auto_map` may name.
_CODE = re.compile(r"([\w.-]+(/[\w.-]+)?--)?[A-Za-z_]\w*\.[A-Za-z_]\w*")
# Keyword arguments that transformers passes to a configuration although they are not fields of it.
_COMMON_KWARGS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
}


class ConfigurationError(StrictDataclassError, ValueError):
    """A configuration that breaks a rule: the error of strict dataclasses, which alone is no `ValueError`."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known, if it can be guessed which is meant; else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


@strict
class CaptionerConfig(PreTrainedConfig):
    r"""
    Fields and rules common to [`RnnCaptionerConfig`] and [`TransformerCaptionerConfig`].

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of any vision model that transformers has; a `dict` needs its `model_type`. That of a
            two-tower model (CLIP, SigLIP) is replaced by that of its vision tower. Defaults to `ResNetConfig()`.
        vision_feature_layer (`int` or `list[int]`, *optional*):
            Index of the vision model's `hidden_states` that become the regions, as in LLaVA; of several the channels
            stand side by side, on one grid. Defaults to its `last_hidden_state`.
        keep_prefix_tokens (`bool`, defaults to `False`):
            Whether the class, distillation and register tokens of a vision Transformer are regions, too, in front of
            its patches. They have no place in the image, so attention maps leave out the attention that they get. As
            in transformers' `VisionEncoderDecoderModel`, whose decoders attend to them.
        vocab_size (`int`, defaults to 10000): Number of tokens.
        hidden_size (`int`, defaults to 512): Width of the decoder and of the word embeddings.
        dropout (`float`, defaults to 0.1): Probability of dropping a unit.
        label_smoothing (`float`, defaults to 0.0):
            Probability mass moved from the correct token to the whole vocabulary, uniformly, in the training loss
            (Szegedy et al. 2016).
        score_temperature (`float`, defaults to 1.0):
            What logits are divided by before a probability is shown (Guo et al. 2017), so that a word that is given a
            probability of 0.8 is right in 8 of 10 cases. `generate()` takes no notice of it.
        familiarity_rank (`int`, defaults to 0):
            Rank of the statistics of known images that the weights contain, by which images of another kind, such as
            no photographs, get a low score; 0 if there are none.
        min_score (`float`, *optional*):
            Score below which a caption should rather not be shown.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: if a field has a wrong type or breaks a rule; it is a
            `ValueError`, too, where the configuration is read from a file or a model is built.
        `ValueError`: if a name is not a field, or `vision_config` or a field that all models have can't be read.

    Sizes are bounded, generously; `bounds_captioner.py` says how and why.
    """

    sub_configs = {"vision_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "encoder_last_hidden_state"]

    vision_config: dict | PreTrainedConfig | None = None
    vision_feature_layer: int | list[int] | None = None
    keep_prefix_tokens: bool = False
    vocab_size: int = 10000
    hidden_size: int = 512
    dropout: float | int = 0.1
    label_smoothing: float | int = 0.0
    score_temperature: float | int = 1.0
    familiarity_rank: int = 0
    min_score: float | int | None = None
    is_encoder_decoder: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    decoder_start_token_id: int | None = 2

    def __post_init__(self, **kwargs):
        # `custom_pipelines` tells transformers to load the pipeline's code from the checkpoint's folder. Where this
        # package is installed, the pipeline is registered already, so the entry is dropped.
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            kwargs.pop("custom_pipelines", None)
        # Unknown names are refused only in configurations that a person writes, where they are usually misspelt
        # fields. A configuration read from a file may have fields that another version wrote.
        if not self.comes_from_file:
            self._refuse_unknown(kwargs)
        self._refuse_odd(kwargs)
        if self.vision_config is None:
            self.vision_config = CONFIG_MAPPING["resnet"]()
        elif isinstance(self.vision_config, dict):
            settings = dict(self.vision_config)
            model_type = settings.pop("model_type", None)
            if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"`vision_config` must name a transformers vision model in its `model_type`, got {model_type!r}"
                )
            check_vision_settings(settings)
            try:
                self.vision_config = CONFIG_MAPPING[model_type](**settings)
            except _SURPRISES as error:
                raise ValueError(f"`vision_config` must be of type {model_type!r}: {error}") from error
        elif not isinstance(self.vision_config, PreTrainedConfig):
            raise ValueError(f"`vision_config` must be a configuration or a mapping, got {self.vision_config!r}")
        if getattr(self.vision_config, "vision_config", None) is not None:  # a two-tower model: CLIP, SigLIP
            self.vision_config = self.vision_config.vision_config
        # The whole captioner has one dtype: without this, a vision model that was saved in half precision would be
        # built in half precision inside a single-precision captioner.
        self.vision_config.dtype = None
        try:
            super().__post_init__(**kwargs)
        except _SURPRISES as error:
            raise ValueError(f"a field that all models have must be what transformers takes: {error}") from error

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> Any:
        """As in transformers; what is wrong with the fields is a `ValueError`."""
        try:
            return super().from_dict(config_dict, **kwargs)
        except _SURPRISES as error:
            raise ConfigurationError(f"the configuration can't be read: {error}") from error

    @property
    def comes_from_file(self) -> bool:
        """Whether this configuration was saved before: then it says which version of transformers wrote it."""
        return self.transformers_version is not None

    @property
    def attends(self) -> bool:
        """Whether the decoder looks at single regions, so that there are attention maps."""
        raise NotImplementedError

    def describe(self) -> str:
        """The decoder in words, as the card says it; every family has its own."""
        raise NotImplementedError(f"{type(self).__name__} must say what it configures in `describe`")

    def _refuse_unknown(self, kwargs):
        known = _COMMON_KWARGS | set(GenerationConfig().to_dict())
        for name, value in kwargs.items():
            if name in known or name.startswith("_"):
                continue
            hint = did_you_mean(name, self.__dataclass_fields__)
            raise ValueError(f"`{name}` (value {value!r}) is not a field of {type(self).__name__}{hint}")

    def _refuse_odd(self, kwargs):
        """What transformers would trip over, or take into memory, before any rule is checked."""
        for name, value in kwargs.items():
            if callable(getattr(type(self), name, None)):
                raise ValueError(f"`{name}` is not a field of {type(self).__name__}: it would replace a method")
            if name in _OTHER_CONFIGS and not isinstance(value, PreTrainedConfig):
                raise ValueError(f"`{name}` is not a field of {type(self).__name__}, and transformers reads it")
            kinds = _KINDS.get(name)
            if kinds is not None and not isinstance(value, (*kinds, type(None))):
                raise ValueError(f"`{name}` must be a {kinds[0].__name__}, got {value!r}")
        for name in ("dtype", "torch_dtype"):
            value = self.dtype if name == "dtype" else kwargs.get(name)
            known = getattr(torch, value, None) if isinstance(value, str) else value
            if value is not None and not isinstance(known, torch.dtype):
                raise ValueError(f"`{name}` must be a type of numbers, such as float32, got {value!r}")
        for name in ("id2label", "label2id"):
            labels = getattr(self, name)
            if not isinstance(labels, (dict, type(None))):
                raise ValueError(f"`{name}` must be a mapping, got {labels!r}")
            check_size(f"len({name})", len(labels or ()), MAX_LABELS, 0)
        for key in self.id2label or ():
            if not str(key).isdecimal():
                raise ValueError(f"`id2label` must be a mapping from numbers, got {key!r}")
        if kwargs.get("num_labels", 0) is None:
            kwargs.pop("num_labels")
        check_size("num_labels", kwargs.get("num_labels", 0), MAX_LABELS, 0)
        code = kwargs.get("auto_map") or {}
        if not isinstance(code, dict):
            raise ValueError(f"`auto_map` must be a mapping, got {code!r}")
        for name, values in code.items():
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if value is not None and not (isinstance(value, str) and _CODE.fullmatch(value)):
                    raise ValueError(f"`auto_map` must name classes in files of the folder, got {name}: {value!r}")

    def validate_sizes(self) -> None:
        """Sizes are positive and bounded."""
        check_size("vocab_size", self.vocab_size, MAX_VOCABULARY)
        check_size("hidden_size", self.hidden_size, MAX_WIDTH)

    def validate_numbers(self) -> None:
        """Numbers are finite: JSON has none that are not."""
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`{name}` must be a finite number, got {value}")

    def validate_vision_config(self) -> None:
        """The vision model's sizes are bounded."""
        check_vision_settings(self.vision_config.to_dict())

    def validate_vision_feature_layer(self) -> None:
        """A list of layers names at least one."""
        if self.vision_feature_layer == []:
            raise ValueError("`vision_feature_layer` must be an index, or at least one, got []")

    def validate_probabilities(self) -> None:
        """Dropout and label smoothing lie in [0, 1)."""
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}")

    def validate_confidence(self) -> None:
        """The temperature of scores is positive, their least value in [0, 1], the rank not negative."""
        if self.familiarity_rank < 0:
            raise ValueError(f"`familiarity_rank` must be at least 0, got {self.familiarity_rank}")
        if self.score_temperature <= 0:
            raise ValueError(f"`score_temperature` must be above 0, got {self.score_temperature}")
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise ValueError(f"`min_score` must be in [0, 1], got {self.min_score}")

    def validate_special_token_ids(self) -> None:
        """Special token ids are in [0, vocab_size), and `pad_token_id` is not an EOS id."""
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        ids = {
            "pad_token_id": [self.pad_token_id],
            "bos_token_id": [self.bos_token_id],
            "eos_token_id": eos,
            "decoder_start_token_id": [self.decoder_start_token_id],
        }
        for name, values in ids.items():
            for value in values:
                if value is not None and not 0 <= value < self.vocab_size:
                    raise ValueError(f"`{name}` must be in [0, vocab_size={self.vocab_size}), got {value}")
        if self.pad_token_id is not None and self.pad_token_id in eos:
            raise ValueError(f"`pad_token_id` must differ from `eos_token_id`, got {self.pad_token_id} for both")
