"""transformers' Trainer for captioners: training on reference captions, and training by reward."""

from .captioning_trainer import CaptioningTrainer, caption_metrics
from .self_critical_trainer import SelfCriticalTrainer

__all__ = ["CaptioningTrainer", "SelfCriticalTrainer", "caption_metrics"]
