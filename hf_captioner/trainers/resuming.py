"""A training that was stopped at any moment goes on as if it had not been."""

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, TrainerCallback

from ..compat import TrainerInternals
from ..data import CaptionCollator
from ..data.views import DrawnRows
from ..errors import InputError
from ..files import why_not_written
from .checkpoints import UNFINISHED, check, newest_whole, publish

SUMS = "running"  # folder of a checkpoint: what each process has summed up for the next line of the log


class ResumingTrainer(TrainerInternals, Seq2SeqTrainer):
    """
    A `Seq2SeqTrainer` whose checkpoints are written beside their place and moved there when they are whole, with a
    manifest, and from which a training goes on bit by bit as if it had not been stopped: with the sums that the log
    makes means of, the order of images and what is drawn from their captions, and the end that it had reached.
    """

    resumed_from: Path | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(_Resuming(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> Any:
        """
        As in transformers, where `True` stands for the last checkpoint: here it is the newest one that is whole.

        Raises:
            InputError: if the checkpoint, or the best one if it is needed, is not whole.
        """
        self.resumed_from = None
        if resume_from_checkpoint is True and Path(self.args.output_dir).is_dir():
            newest, _ = newest_whole(Path(self.args.output_dir))
            resume_from_checkpoint = True if newest is None else str(newest)
        if isinstance(resume_from_checkpoint, (str, Path)):
            self.resumed_from = Path(resume_from_checkpoint)
            check(self.resumed_from, needs_best=self.args.load_best_model_at_end)
            resume_from_checkpoint = str(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_checkpoint(self, folder: Path, write: Callable[[], None]) -> None:
        """
        Raises:
            InputError: if there is no room for it; what was written is removed, and earlier checkpoints stay.
        """
        place = folder / f"checkpoint-{self.state.global_step}"
        beside = folder / UNFINISHED
        first = self.args.should_save
        best = self.state.best_model_checkpoint
        if step := self.state.best_global_step:  # as the Trainer finds it, which looks where it writes
            path = folder / f"checkpoint-{step}"
            best = str(path) if path == place or path.is_dir() else best
        if first:
            shutil.rmtree(beside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with self._beside(beside):
                write()
            if not self.args.save_only_model:
                sums = beside / place.name / SUMS / f"{self.args.process_index}.json"
                sums.parent.mkdir(parents=True, exist_ok=True)
                sums.write_text(json.dumps(self.running_sums()))
            self.accelerator.wait_for_everyone()
            self.state.best_model_checkpoint = best
            if first:
                self.state.save_to_json(str(beside / place.name / "trainer_state.json"))
                publish(beside / place.name, place)
        except Exception as error:
            if reason := why_not_written(error):
                raise InputError(
                    f"{place} could not be written ({reason}); with more room, the same command goes on from the last "
                    "checkpoint before it"
                ) from error
            raise
        finally:
            if first:
                shutil.rmtree(beside, ignore_errors=True)
        if first:
            self.rotate_checkpoints(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_checkpoint(place)

    @contextmanager
    def _beside(self, folder: Path):
        self.checkpoints_beside = folder
        try:
            yield
        finally:
            self.checkpoints_beside = None

    def begin_epoch(self, epoch: int, loader: Any) -> bool:
        if self.resumed_from is not None and (self.state.global_step >= self.state.max_steps or self._stopped_early()):
            return False  # it was stopped after its last step
        # The loader of the rest of an epoch does not tell the sampler of several processes which epoch it is.
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        _draw_apart(loader, seed + epoch)
        if isinstance(self.data_collator, CaptionCollator):
            self.data_collator.set_epoch(seed, epoch)
        if isinstance(self.train_dataset, DrawnRows):
            self.train_dataset.begin_epoch(seed, epoch)
        return True

    def get_eval_dataloader(self, *args, **kwargs) -> Any:
        """As in transformers."""
        loader = super().get_eval_dataloader(*args, **kwargs)
        _draw_apart(loader, self.args.seed)
        return loader

    def _stopped_early(self) -> bool:
        found = [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        return any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in found)

    def running_sums(self) -> dict[str, Any]:
        """What is summed up for the next line of the log, and for the training's mean loss; JSON can hold it."""
        return {"loss": self.running_loss}

    def go_on_with(self, sums: dict[str, Any]) -> None:
        """Takes up what [`running_sums`] gave when a checkpoint was written."""
        self.running_loss = sums["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in transformers, but the mean loss of a training is over all its steps, those before a stop as well."""
        if "train_loss" in logs:
            logs["train_loss"] = self.running_loss["logged"] / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)


def _draw_apart(loader: Any, seed: int) -> None:
    """
    A loader draws a seed for its workers whenever it is read, or only once if they stay: from now on by a generator of
    its own, so that dropout does not depend on its workers.
    """
    getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(seed)


class _Resuming(TrainerCallback):
    """What has to be done at moments for which the Trainer has no method of its own."""

    def __init__(self, trainer: ResumingTrainer):
        self.trainer = trainer
        self.postponed = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.postponed = False
        if (checkpoint := self.trainer.resumed_from) is None:
            return
        best = checkpoint.with_name(f"checkpoint-{state.best_global_step}")
        if state.best_global_step and best.is_dir():  # the folder may have been moved since
            state.best_model_checkpoint = str(best)
        sums = checkpoint / SUMS / f"{args.process_index}.json"
        if sums.exists():  # not if the number of processes has grown
            self.trainer.go_on_with(json.loads(sums.read_text()))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        # A training goes on from the last step of an epoch with the next epoch. So what happens at the epoch's end,
        # such as an evaluation, must come before its checkpoint.
        if control.should_save and (control.should_training_stop or state.epoch == int(state.epoch)):
            control.should_save, self.postponed = False, True

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        if self.postponed:
            control.should_save, self.postponed = True, False
