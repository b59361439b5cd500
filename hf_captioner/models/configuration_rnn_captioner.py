"""Configuration of the CNN-RNN captioners."""

from huggingface_hub.dataclasses import strict

from .attention import (
    AdditiveAlignment,
    Alignment,
    BilinearAlignment,
    DotProductAlignment,
    MultiHeadAlignment,
    ScaledDotProductAlignment,
)
from .bounds_captioner import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, check_size
from .configuration_captioner import CaptionerConfig

# The alignment that each name of `attention` stands for.
ATTENTIONS: dict[str, type[Alignment] | None] = {
    "none": None,
    "additive": AdditiveAlignment,
    "dot": DotProductAlignment,
    "general": BilinearAlignment,
    "scaled_dot": ScaledDotProductAlignment,
    "multi_head": MultiHeadAlignment,
}
_ALIGNMENT_FIELDS = ("attention_size", "num_attention_heads")  # read by some alignments and by nothing else
_DEFAULT_HEADS = 8
ATTENTION_SAMPLINGS = ("soft", "hard")
HARD_GRADIENTS = ("reinforce", "straight_through")
CELLS = ("lstm", "gru")


@strict
class RnnCaptionerConfig(CaptionerConfig):
    r"""
    Configuration of a captioner whose decoder is an LSTM or a GRU. The defaults are those of Show, Attend and Tell
    (Xu et al. 2015) with soft attention. Fields that are not listed here are described at [`CaptionerConfig`].

    Args:
        attention (`str`, defaults to `"additive"`):
            How the decoder looks at the image. `"none"`: one context vector per image, the pooled features, which the
            RNN reads before the first word (Show and Tell, Vinyals et al. 2015). All others compute one context vector
            per word, from alignment scores between the RNN's state h and each region a: `"additive"`
            v·tanh(W_k a + W_q h + b) (Bahdanau et al. 2015); `"dot"` (W_q h)·(W_k a) and `"general"` h·(W a) (Luong
            et al. 2015); `"scaled_dot"` (W_q h)·(W_k a) / sqrt(d), d the width of a head, and `"multi_head"` the same
            in several heads with projected values (Vaswani et al. 2017).
        attention_sampling (`str`, defaults to `"soft"`):
            `"soft"`: the context vector is the weighted average of all regions. `"hard"`: it is a single region (one
            per head), sampled from the attention distribution in training and the most probable region in evaluation;
            trained as `hard_gradient` says, with the last fields below.
        attention_size (`int`, *optional*):
            Width of keys and queries, by default `hidden_size`. `"general"` has none: its keys have the state's width.
        num_attention_heads (`int`, *optional*):
            Heads of `"multi_head"`, by default 8; they must divide `attention_size`. The others have one.
        region_size (`int`, *optional*):
            Width to which regions are brought before they are attended to, by layer normalisation, a linear layer,
            ReLU and dropout. By default regions stay as the vision model made them.
        region_dropout (`float`, *optional*): Dropout of these, by default `dropout`.
        context_mlp (`bool`, defaults to `False`): Whether the context vector goes through an MLP before the RNN.
        context_norm (`bool`, defaults to `False`):
            With `attention="none"`: whether the context vector is normalised over the images of a batch (Ioffe and
            Szegedy 2015) before the RNN reads it. What all images have in common then makes no difference, and the
            vector cannot grow until the RNN's gates no longer tell one image from another.
        cell (`str`, defaults to `"lstm"`): `"lstm"` or `"gru"`.
        num_layers (`int`, defaults to 1):
            RNN layers. Only the first uses attention. As in GNMT (Wu et al. 2016) the layers above it do not feed back
            into the attention, so in training they process the whole caption in one call.
        doubly_stochastic_lambda (`float`, defaults to 1.0):
            Weight of the penalty (1 - sum over time of alpha)^2, summed over the regions of a caption (Xu et al. 2015,
            equation 14). It encourages the model to look at every region over the course of a caption; 0 switches it
            off. With hard attention, alpha is the attention distribution, not the one-hot weights.
        hard_gradient (`str`, defaults to `"reinforce"`):
            Hard attention: how the choice of regions is trained. `"reinforce"`: the variational lower bound of Xu et
            al. 2015, section 4.1, an unbiased estimate of high variance. `"straight_through"`: the forward pass uses
            the sampled region, the backward pass the gradient of the expected context (Bengio et al. 2013,
            arXiv:1308.3432, section 4): biased, of low variance; `reinforce_lambda` and `baseline_decay` then play no
            part.
        reinforce_lambda (`float`, defaults to 1.0):
            Hard attention: weight lambda_r of the REINFORCE (score function) term (Xu et al. 2015, section 4.1). The
            paper tunes it on validation data; the defaults of this field and of `entropy_lambda` are those of the
            authors' code.
        entropy_lambda (`float`, defaults to 0.002):
            Hard attention: weight lambda_e of the bonus for the entropy of the attention distribution.
        baseline_decay (`float`, defaults to 0.9):
            Hard attention: decay of the exponential moving averages that serve as baselines, one per word of the
            vocabulary: new = decay * old + (1 - decay) * the batch's mean log-likelihood of the word.
        expected_context_probability (`float`, defaults to 0.5):
            Hard attention: probability with which a caption is trained on the expected context, that is with soft
            attention, instead of a sampled region.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: if a field has a wrong type or breaks a rule.
        `ValueError`: if a name is not a field.

    Examples:
        >>> from hf_captioner import RnnCaptionerConfig
        >>> config = RnnCaptionerConfig(attention="multi_head", num_attention_heads=4, cell="gru", vocab_size=1000)
        >>> config.hidden_size, config.vision_config.model_type, config.describe()
        (512, 'resnet', 'an RNN (GRU, layers: 1, width 512) with soft multi-head attention')
    """

    model_type = "rnn_captioner"
    attribute_map = {"num_hidden_layers": "num_layers"}

    attention: str = "additive"
    attention_sampling: str = "soft"
    attention_size: int | None = None
    num_attention_heads: int | None = None
    region_size: int | None = None
    region_dropout: float | int | None = None
    context_mlp: bool = False
    context_norm: bool = False
    cell: str = "lstm"
    num_layers: int = 1
    dropout: float | int = 0.5
    doubly_stochastic_lambda: float | int = 1.0
    hard_gradient: str = "reinforce"
    reinforce_lambda: float | int = 1.0
    entropy_lambda: float | int = 0.002
    baseline_decay: float | int = 0.9
    expected_context_probability: float | int = 0.5

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.region_size is not None and self.region_dropout is None:
            self.region_dropout = self.dropout
        used = self.alignment.fields if self.attends else ()
        defaults = {"attention_size": self.hidden_size, "num_attention_heads": _DEFAULT_HEADS}
        for name, default in defaults.items():
            if name in used and getattr(self, name) is None:
                setattr(self, name, default)
            elif name not in used and self.comes_from_file:
                # Earlier versions wrote every field, whether or not it had an effect.
                setattr(self, name, None)

    @property
    def alignment(self) -> type[Alignment] | None:
        """The class of the alignment, `None` without attention."""
        return ATTENTIONS.get(self.attention)

    @property
    def attends(self) -> bool:
        return self.alignment is not None

    def describe(self) -> str:
        """The decoder in words, as the card says it."""
        attention = "without attention"
        if self.attends:
            attention = f"with {self.attention_sampling} {self.alignment.title} attention"
        return f"an RNN ({self.cell.upper()}, layers: {self.num_layers}, width {self.hidden_size}) {attention}"

    def validate_choices(self) -> None:
        """Every named choice is a known one."""
        for name, choices in (
            ("attention", ATTENTIONS),
            ("attention_sampling", ATTENTION_SAMPLINGS),
            ("hard_gradient", HARD_GRADIENTS),
            ("cell", CELLS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.attention == "none" and self.attention_sampling == "hard":
            raise ValueError(
                '`attention_sampling` must be "soft" with `attention="none"`, which chooses no region, got "hard"'
            )

    def validate_ignored_fields(self) -> None:
        """No field is set that the attention does not read."""
        used = self.alignment.fields if self.attends else ()
        ignored = {name: getattr(self, name) for name in _ALIGNMENT_FIELDS if name not in used}
        if self.context_mlp and not self.attends:
            ignored["context_mlp"] = self.context_mlp
        if self.context_norm and self.attends:
            ignored["context_norm"] = self.context_norm
        if self.region_size is None and not self.comes_from_file:
            ignored["region_dropout"] = self.region_dropout
        if self.attention_sampling == "soft" and self.hard_gradient != "reinforce" and not self.comes_from_file:
            raise ValueError(
                "`hard_gradient` must be left out: it has no effect with attention_sampling='soft', "
                f"got {self.hard_gradient!r}"
            )
        for name, value in ignored.items():
            if value is not None:
                raise ValueError(
                    f"`{name}` must be left out: it has no effect with attention={self.attention!r} and "
                    f"region_size={self.region_size}, got {value!r}"
                )

    def validate_rnn_sizes(self) -> None:
        """Layers, widths and heads are bounded and fit together."""
        for name, largest in (
            ("hidden_size", MAX_WIDTH),  # before what may come from it
            ("num_layers", MAX_LAYERS),
            ("num_attention_heads", MAX_HEADS),
            ("attention_size", MAX_WIDTH),
            ("region_size", MAX_WIDTH),
        ):
            if getattr(self, name) is not None or name in ("hidden_size", "num_layers"):
                check_size(name, getattr(self, name), largest)
        if self.num_attention_heads is not None and self.attention_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `attention_size` ({self.attention_size}), "
                f"got {self.num_attention_heads}"
            )
        if self.region_dropout is not None and not 0 <= self.region_dropout < 1:
            raise ValueError(f"`region_dropout` must be in [0, 1), got {self.region_dropout}")
        for name in ("doubly_stochastic_lambda", "reinforce_lambda", "entropy_lambda"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        for name in ("baseline_decay", "expected_context_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)}")


RnnCaptionerConfig.register_for_auto_class()

__all__ = ["RnnCaptionerConfig"]
