"""Configuration of the CNN-RNN captioners."""

from huggingface_hub.dataclasses import strict

from .configuration_captioner import CaptionerConfig

ATTENTIONS = ("none", "additive", "dot", "scaled_dot", "multi_head")
ATTENTION_SAMPLINGS = ("soft",)
CELLS = ("lstm", "gru")


@strict
class RnnCaptionerConfig(CaptionerConfig):
    r"""
    Configuration of a captioner whose decoder is an LSTM or a GRU. The defaults are those of Show, Attend and Tell
    (Xu et al. 2015) with soft attention. Fields that are not listed here are described at [`CaptionerConfig`].

    Args:
        attention (`str`, defaults to `"additive"`):
            How the decoder looks at the image. `"none"`: one pooled context vector an image, shown to the RNN before
            the first word (Show and Tell, Vinyals et al. 2015). The others make one context vector a word, from
            alignment scores between the RNN's state h and a region a: `"additive"` v·tanh(W_k a + W_q h + b)
            (Bahdanau et al. 2015), `"dot"` (W_q h)·(W_k a) (Luong et al. 2015), `"scaled_dot"` the same over
            sqrt(d), `"multi_head"` the same in several heads with projected values (Vaswani et al. 2017).
        attention_sampling (`str`, defaults to `"soft"`): `"soft"`: the context is the expectation over regions.
        attention_size (`int`, *optional*): Width of keys and queries. Defaults to `hidden_size`.
        num_attention_heads (`int`, defaults to 8): Heads of `"multi_head"`; they must divide `attention_size`.
        context_mlp (`bool`, defaults to `False`): The attended features pass an MLP before they enter the RNN.
        cell (`str`, defaults to `"lstm"`): `"lstm"` or `"gru"`.
        num_layers (`int`, defaults to 1):
            RNN layers. The first one attends; as in GNMT (Wu et al. 2016), those above do not wait for it step by
            step and run over the whole caption at once.
        doubly_stochastic_lambda (`float`, defaults to 1.0):
            Weight of the penalty (1 - sum over time of alpha)^2, summed over the regions of a caption
            (Xu et al. 2015, equation 14). Its gradient spreads the attention; 0 switches it off.
    """

    model_type = "rnn_captioner"
    attribute_map = {"num_hidden_layers": "num_layers"}

    attention: str = "additive"
    attention_sampling: str = "soft"
    attention_size: int | None = None
    num_attention_heads: int = 8
    context_mlp: bool = False
    cell: str = "lstm"
    num_layers: int = 1
    dropout: float | int = 0.5
    doubly_stochastic_lambda: float | int = 1.0

    def __post_init__(self, **kwargs):
        if self.attention_size is None:
            self.attention_size = self.hidden_size
        super().__post_init__(**kwargs)

    def validate_choices(self):
        """Names are among the known ones."""
        for name, choices in (
            ("attention", ATTENTIONS),
            ("attention_sampling", ATTENTION_SAMPLINGS),
            ("cell", CELLS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def validate_rnn_sizes(self):
        """Layers, widths and heads fit together."""
        for name in ("num_layers", "num_attention_heads", "attention_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.attention == "multi_head" and self.attention_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `attention_size` ({self.attention_size}), "
                f"got {self.num_attention_heads}"
            )
        if self.doubly_stochastic_lambda < 0:
            raise ValueError(f"`doubly_stochastic_lambda` must be at least 0, got {self.doubly_stochastic_lambda}")


RnnCaptionerConfig.register_for_auto_class()

__all__ = ["RnnCaptionerConfig"]
