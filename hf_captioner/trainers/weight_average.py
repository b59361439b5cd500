"""Averages of the weights that a training passes through: they caption better than the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..errors import InputError

# Beside a checkpoint's averaged weights, what the optimiser goes on from. It lies in a folder of its own, because the
# safetensors files of the checkpoint itself go to the Hub.
OPTIMISED_WEIGHTS = Path("optimised", "weights.safetensors")


class WeightAverage(TrainerCallback):
    """
    An exponential moving average of a model's trained weights (Polyak and Juditsky 1992). After optimiser step n,
    average = d average + (1 - d) weights, where d = min(decay, (1 + n) / (10 + n)) forgets the first weights faster.

    During training the model has the optimiser's weights, and the averaged ones inside [`applied`]. When training
    ends, the model has the averaged weights. Buffers, such as batch statistics, are the model's own.

    Args:
        model: its parameters that have a gradient are averaged.
        decay: what is left of the average after a step.

    Raises:
        InputError: if the decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"`ema_decay` must be in [0, 1), got {decay}")
        self.model, self.decay = model, decay
        self.average: list[torch.Tensor] | None = None  # while training runs
        self._resumed: list[torch.Tensor] | None = None

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        weights = self._weights().values()
        start = weights if self._resumed is None else self._resumed
        self.average = [
            value.detach().to(weight.device, copy=True) for value, weight in zip(start, weights, strict=True)
        ]
        self._resumed = None

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        get_ema_multi_avg_fn(decay)(self.average, list(self._weights().values()), 0)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        averages, self.average = self.average, None
        is_best = args.load_best_model_at_end and state.best_model_checkpoint  # whose weights are averaged already
        if averages is not None and not is_best:
            self._exchange(averages)

    @torch.no_grad()
    def _exchange(self, averages: list[torch.Tensor]) -> None:
        for weight, average in zip(self._weights().values(), averages, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, if there are any."""
        averages = self.average
        if averages is None:
            yield
            return
        self._exchange(averages)
        try:
            yield
        finally:
            self._exchange(averages)

    def save(self, folder: Path) -> None:
        """The weights that the optimiser goes on from, into a checkpoint of the averaged ones."""
        path = folder / OPTIMISED_WEIGHTS
        path.parent.mkdir(exist_ok=True)
        save_file({name: weight.detach().contiguous() for name, weight in self._weights().items()}, path)

    @torch.no_grad()
    def resume(self, folder: Path) -> None:
        """
        After a checkpoint's weights were loaded into the model: they become the average, and the optimiser's own take
        their place.

        Raises:
            InputError: if the checkpoint does not have those of the parameters that are trained.
        """
        weights, path = self._weights(), folder / OPTIMISED_WEIGHTS
        own = load_file(path) if path.exists() else {}
        if own.keys() != weights.keys():
            raise InputError(
                f"a checkpoint to go on from with `ema_decay` must be of a training that had it and trained the same "
                f"parameters, got {folder}"
            )
        self._resumed = [weight.detach().clone() for weight in weights.values()]
        for name, weight in weights.items():
            weight.copy_(own[name])
