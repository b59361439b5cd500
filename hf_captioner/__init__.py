"""The classic image captioners as Hugging Face models."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# An exported captioner (`hf_captioner.export.OnnxCaptioner`) runs where torch is not installed.
_HAS_TORCH = find_spec("torch") is not None

if TYPE_CHECKING or _HAS_TORCH:
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17's top demands torchvision
    from transformers.pipelines import PIPELINE_REGISTRY

    from .checkpoints import PHOTOGRAPHS
    from .models.configuration_rnn_captioner import RnnCaptionerConfig
    from .models.configuration_transformer_captioner import TransformerCaptionerConfig
    from .models.image_processing_captioner import CaptionerImageProcessor
    from .models.modeling_rnn_captioner import RnnCaptionerForConditionalGeneration, RnnCaptionerModel
    from .models.modeling_transformer_captioner import (
        TransformerCaptionerForConditionalGeneration,
        TransformerCaptionerModel,
    )
    from .models.pipeline_captioner import TASK, ImageCaptioningPipeline
    from .models.processing_captioner import CaptionerProcessor
    from .models.tokenization_captioner import train_tokenizer

    for _config, _model in (
        (RnnCaptionerConfig, RnnCaptionerForConditionalGeneration),
        (TransformerCaptionerConfig, TransformerCaptionerForConditionalGeneration),
    ):
        AutoConfig.register(_config.model_type, _config)
        AutoModel.register(_config, _model)
        AutoModelForImageTextToText.register(_config, _model)
        # One class for both backends: it chooses its base at import.
        AutoImageProcessor.register(
            _config,
            slow_image_processor_class=CaptionerImageProcessor,
            fast_image_processor_class=CaptionerImageProcessor,
        )
        AutoProcessor.register(_config, CaptionerProcessor)

    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        ImageCaptioningPipeline,
        pt_model=AutoModelForImageTextToText,
        default={"model": (PHOTOGRAPHS, "main")},
        type="multimodal",
    )

    def _generation_options(*args, **kwargs):
        # Imported on first use. The pipeline, which travels to the Hub alone, knows of no searches but transformers'.
        from .decoding import generation_options

        return generation_options(*args, **kwargs)

    ImageCaptioningPipeline.named_options = staticmethod(_generation_options)

if TYPE_CHECKING:
    from .trainers import CaptioningTrainer, DistillingTrainer, SelfCriticalTrainer
else:

    def __getattr__(name: str):
        # Imported on first use: the trainers need packages that captioning does not, and take seconds to import.
        if name in ("CaptioningTrainer", "DistillingTrainer", "SelfCriticalTrainer"):
            from . import trainers

            return getattr(trainers, name)
        if name in __all__ and not _HAS_TORCH:
            raise ImportError(f"hf_captioner.{name} must have the package torch, which is not installed")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "CaptionerImageProcessor",
    "CaptionerProcessor",
    "CaptioningTrainer",
    "DistillingTrainer",
    "ImageCaptioningPipeline",
    "RnnCaptionerConfig",
    "RnnCaptionerForConditionalGeneration",
    "RnnCaptionerModel",
    "SelfCriticalTrainer",
    "TransformerCaptionerConfig",
    "TransformerCaptionerForConditionalGeneration",
    "TransformerCaptionerModel",
    "train_tokenizer",
]
