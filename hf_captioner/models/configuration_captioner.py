"""What the configurations of both captioner families share."""

import difflib
from collections.abc import Iterable

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

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
        `huggingface_hub.errors.StrictDataclassError`: if a field has a wrong type or breaks a rule.
        `ValueError`: if a name is not a field.
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
        if self.vision_config is None:
            self.vision_config = CONFIG_MAPPING["resnet"]()
        elif isinstance(self.vision_config, dict):
            settings = dict(self.vision_config)
            model_type = settings.pop("model_type", None)
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"`vision_config` must name a transformers vision model in its `model_type`, got {model_type!r}"
                )
            self.vision_config = CONFIG_MAPPING[model_type](**settings)
        if getattr(self.vision_config, "vision_config", None) is not None:  # a two-tower model: CLIP, SigLIP
            self.vision_config = self.vision_config.vision_config
        # The whole captioner has one dtype: without this, a vision model that was saved in half precision would be
        # built in half precision inside a single-precision captioner.
        self.vision_config.dtype = None
        super().__post_init__(**kwargs)

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

    def validate_sizes(self) -> None:
        """Sizes are positive."""
        for name in ("vocab_size", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")

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
