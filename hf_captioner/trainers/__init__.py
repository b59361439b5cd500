"""transformers' Trainer for captioners: training on reference captions, on teachers' expectations, and by reward."""

from .captioning_trainer import CaptioningTrainer, caption_metrics
from .distilling_trainer import DistillingTrainer
from .self_critical_trainer import SelfCriticalTrainer

__all__ = ["CaptioningTrainer", "DistillingTrainer", "SelfCriticalTrainer", "caption_metrics"]
