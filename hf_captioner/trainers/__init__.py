"""transformers' Trainer for captioners: by the references' words, and by reward."""

from .captioning_trainer import CaptioningTrainer, caption_metrics
from .self_critical_trainer import SelfCriticalTrainer

__all__ = ["CaptioningTrainer", "SelfCriticalTrainer", "caption_metrics"]
