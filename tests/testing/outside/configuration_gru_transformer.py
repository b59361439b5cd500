"""Configuration of a family that the package does not have: a GRU that looks at what a Transformer encoder made."""

from huggingface_hub.dataclasses import strict

from hf_captioner.models.configuration_captioner import CaptionerConfig


@strict
class GruTransformerConfig(CaptionerConfig):
    r"""
    Args:
        encoder_layers (`int`, defaults to 1): Transformer layers over the regions.
        encoder_heads (`int`, defaults to 2): Heads of each; they must divide `hidden_size`.
    """

    model_type = "gru_transformer"

    encoder_layers: int = 1
    encoder_heads: int = 2

    @property
    def attends(self) -> bool:
        return True

    def describe(self) -> str:
        return f"a GRU of width {self.hidden_size} over {self.encoder_layers} Transformer layers"

    def validate_encoder(self):
        """Heads divide the width."""
        if self.hidden_size % self.encoder_heads:
            raise ValueError(
                f"`encoder_heads` must divide `hidden_size` ({self.hidden_size}), got {self.encoder_heads}"
            )


GruTransformerConfig.register_for_auto_class()

__all__ = ["GruTransformerConfig"]
