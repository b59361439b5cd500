"""Configuration of the CNN-Transformer and ViT-Transformer captioners."""

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from .bounds_captioner import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_WIDTH, check_size
from .configuration_captioner import CaptionerConfig

NORMS = ("post", "pre")
POSITION_EMBEDDING_TYPES = ("sinusoidal", "learned")
_DEFAULT_LEARNED_POSITIONS = 128


@strict
class TransformerCaptionerConfig(CaptionerConfig):
    r"""
    Configuration of a captioner whose decoder is a Transformer. The defaults are those of the base model of Attention
    Is All You Need (Vaswani et al. 2017), with the regions of an image in place of the source sentence. Fields that
    are not listed here are described at [`CaptionerConfig`].

    Args:
        encoder_layers (`int`, defaults to 6):
            Number of self-attention layers over the regions, to which two-dimensional sinusoidal positions are added
            first. With 0, the decoder's keys and values are computed from the vision model's regions directly, and no
            positions are added.
        region_norm (`bool`, defaults to `False`):
            Whether regions are layer-normalised before anything else is done with them. Hidden states of different
            layers of a vision model have different scales, see `vision_feature_layer`.
        decoder_layers (`int`, defaults to 6): Layers over the words, each of which attends to the regions.
        num_attention_heads (`int`, defaults to 8):
            Number of heads in every attention layer; they must divide `hidden_size`.
        intermediate_size (`int`, defaults to 2048): Width of the feed-forward sublayers.
        norm (`str`, defaults to `"post"`):
            Where layer normalisation is applied: `"post"`, after each residual connection, as in the paper; `"pre"`,
            before each sublayer and once after the last layer (Xiong et al. 2020), which can be trained without
            warmup.
        position_embedding_type (`str`, defaults to `"sinusoidal"`):
            Positions of the words. `"sinusoidal"`: fixed, also defined for captions longer than those in training;
            `"learned"`: trained, `max_position_embeddings` of them.
        max_position_embeddings (`int`, *optional*):
            Number of learned positions, by default 128; sinusoidal ones have no limit.
        activation (`str`, defaults to `"relu"`):
            Activation function of the feed-forward sublayers, a key of `transformers.activations.ACT2FN`.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: if a field has a wrong type or breaks a rule.
        `ValueError`: if a name is not a field.

    Examples:
        >>> from transformers import ViTConfig
        >>> from hf_captioner import TransformerCaptionerConfig
        >>> config = TransformerCaptionerConfig(vision_config=ViTConfig(), encoder_layers=0, norm="pre")
        >>> config.decoder_layers, config.num_attention_heads, config.hidden_size
        (6, 8, 512)
        >>> config.describe()
        'a Transformer with 0 encoder layers and 6 decoder layers of width 512 and 8 heads'
    """

    model_type = "transformer_captioner"
    attribute_map = {"num_hidden_layers": "decoder_layers"}

    encoder_layers: int = 6
    region_norm: bool = False
    decoder_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    norm: str = "post"
    position_embedding_type: str = "sinusoidal"
    max_position_embeddings: int | None = None
    activation: str = "relu"
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if self.position_embedding_type == "learned" and self.max_position_embeddings is None:
            self.max_position_embeddings = _DEFAULT_LEARNED_POSITIONS
        super().__post_init__(**kwargs)

    @property
    def attends(self) -> bool:
        return True

    def describe(self) -> str:
        """The decoder in words, as the card says it."""
        return (
            f"a Transformer with {self.encoder_layers} encoder layers and {self.decoder_layers} decoder layers of "
            f"width {self.hidden_size} and {self.num_attention_heads} heads"
        )

    def validate_choices(self) -> None:
        """Every named choice is a known one."""
        for name, choices in (
            ("norm", NORMS),
            ("position_embedding_type", POSITION_EMBEDDING_TYPES),
            ("activation", tuple(ACT2FN)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def validate_transformer_sizes(self) -> None:
        """
        Sizes are positive and bounded, heads divide the width, and the width is even for sinusoidal positions and a
        multiple of 4 for two-dimensional ones.
        """
        for name, largest in (
            ("decoder_layers", MAX_LAYERS),
            ("num_attention_heads", MAX_HEADS),
            ("intermediate_size", MAX_WIDTH),
            ("max_position_embeddings", MAX_POSITIONS),
        ):
            if getattr(self, name) is not None or name != "max_position_embeddings":
                check_size(name, getattr(self, name), largest)
        check_size("encoder_layers", self.encoder_layers, MAX_LAYERS, 0)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` ({self.hidden_size}), got {self.num_attention_heads}"
            )
        for applies, divisor, what in (
            (self.position_embedding_type == "sinusoidal", 2, "sinusoidal positions"),
            (self.encoder_layers > 0, 4, "the two-dimensional positions of encoder layers"),
        ):
            if applies and self.hidden_size % divisor:
                raise ValueError(f"`hidden_size` must be a multiple of {divisor} for {what}, got {self.hidden_size}")


TransformerCaptionerConfig.register_for_auto_class()

__all__ = ["TransformerCaptionerConfig"]
