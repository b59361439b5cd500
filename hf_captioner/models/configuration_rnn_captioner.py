"""Configuration of the CNN-RNN captioners."""

from huggingface_hub.dataclasses import strict

from .configuration_captioner import CaptionerConfig

ATTENTIONS = ("none", "additive", "dot", "scaled_dot", "multi_head")
ATTENTION_SAMPLINGS = ("soft", "hard")
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
        attention_sampling (`str`, defaults to `"soft"`):
            `"soft"`: the context is the expectation over regions. `"hard"`: it is one region (of each head), drawn
            from the attention's distribution in training and the most probable one otherwise; trained by the
            variational lower bound of Xu et al. 2015, section 4.1, with the four fields below.
        attention_size (`int`, *optional*): Width of keys and queries. Defaults to `hidden_size`.
        num_attention_heads (`int`, defaults to 8): Heads of `"multi_head"`; they must divide `attention_size`.
        context_mlp (`bool`, defaults to `False`): The attended features pass an MLP before they enter the RNN.
        cell (`str`, defaults to `"lstm"`): `"lstm"` or `"gru"`.
        num_layers (`int`, defaults to 1):
            RNN layers. The first one attends; as in GNMT (Wu et al. 2016), those above do not wait for it step by
            step and run over the whole caption at once.
        doubly_stochastic_lambda (`float`, defaults to 1.0):
            Weight of the penalty (1 - sum over time of alpha)^2, summed over the regions of a caption
            (Xu et al. 2015, equation 14). Its gradient spreads the attention; 0 switches it off. With hard attention
            alpha are the probabilities.
        reinforce_lambda (`float`, defaults to 1.0):
            Hard attention: weight lambda_r of the score function's term (Xu et al. 2015, section 4.1). The paper
            chose it by validation; this and the next are the defaults of its authors' code.
        entropy_lambda (`float`, defaults to 0.002):
            Hard attention: weight lambda_e of the entropy of the attention, which is rewarded.
        baseline_decay (`float`, defaults to 0.9):
            Hard attention: what a batch leaves of the baselines, moving averages of every word's log-likelihood.
        expected_context_probability (`float`, defaults to 0.5):
            Hard attention: share of captions that are trained with the expected context, as if attention were soft.
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
    reinforce_lambda: float | int = 1.0
    entropy_lambda: float | int = 0.002
    baseline_decay: float | int = 0.9
    expected_context_probability: float | int = 0.5

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
        if self.attention == "none" and self.attention_sampling == "hard":
            raise ValueError('`attention_sampling` must be "soft" with `attention="none"`, which chooses no region')

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
        for name in ("doubly_stochastic_lambda", "reinforce_lambda", "entropy_lambda"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")
        for name in ("baseline_decay", "expected_context_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)}")


RnnCaptionerConfig.register_for_auto_class()

__all__ = ["RnnCaptionerConfig"]
