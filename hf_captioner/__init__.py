"""The classic image captioners as Hugging Face models."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from .configuration_rnn_captioner import RnnCaptionerConfig
from .modeling_rnn_captioner import RnnCaptionerForConditionalGeneration, RnnCaptionerModel

AutoConfig.register("rnn_captioner", RnnCaptionerConfig)
AutoModel.register(RnnCaptionerConfig, RnnCaptionerForConditionalGeneration)
AutoModelForImageTextToText.register(RnnCaptionerConfig, RnnCaptionerForConditionalGeneration)

__all__ = [
    "RnnCaptionerConfig",
    "RnnCaptionerForConditionalGeneration",
    "RnnCaptionerModel",
]
