"""What a training looks like as it goes: pictures and numbers for TensorBoard, and alarms that name what is wrong."""

import logging
import math
from collections import Counter
from typing import Any

import datasets
import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..explain import grid_picture
from ..metrics import Alarm, collapse_checks, find_alarms, tokenize
from ..models.tokenization_captioner import decode_captions
from .captioning_trainer import CaptioningTrainer
from .watched_images import Look, WatchedImages

logger = logging.getLogger(__name__)

SETTLED = 100  # optimiser steps after which a captioner knows how frequent words are, whatever else it lacks
LOGGED = (
    "unique_ratio",
    "image_use",
    "image_use_low",
    "image_use_high",
    "loss_use",
    "loss_use_low",
    "loss_use_high",
    "features_differ",
    "attention_entropy",
    "attention_images",
    "attention_steps",
    "pointing",
    "unknown_words",
)
ALARM = "alarm_"  # how lines of the log begin that hold an alarm's text


class TrainingSeen(TrainerCallback):
    """
    At each evaluation: numbers by which a collapsed captioner is known go to the log, and so to wherever `report_to`
    says; alarms go to the log as warnings; and if TensorBoard is among the reports, it gets the same eight images with
    their captions, references and attention maps, and a histogram of caption lengths.

    Captions are those that the evaluation generated; where it has generated none, the few watched images are
    captioned. All is done by the main process, and nothing draws random numbers: the training goes on as without it.

    Args:
        trainer: that evaluates; the callback is to be added to it.
        pictures: the rows of its `eval_dataset` with `image` and `captions`, and of shapes `objects` and `mentions`.
    """

    def __init__(self, trainer: CaptioningTrainer, pictures: datasets.Dataset):
        self.trainer = trainer
        self.references = pictures["captions"][:]
        self.watched = WatchedImages(trainer.processing_class, trainer.eval_dataset, pictures)
        self._words: dict[str, float] | None = None

    def on_evaluate(self, args, state, control, metrics: dict[str, float] | None = None, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        said = self._said()
        measured = dict(self._of_words()) | self._of_log(metrics or {}, kwargs.get("lr_scheduler"))
        captions: list[str] = []
        if said is not None:
            rows = sorted(said)
            captions = decode_captions(self.trainer.processing_class.tokenizer, np.stack([said[row] for row in rows]))
            measured |= collapse_checks(captions, [self.references[row] for row in rows])
        look = self._look(said)
        measured |= {} if look is None else look.numbers
        numbers = {f"eval_{name}": measured[name] for name in LOGGED if name in measured}
        self.trainer.log(numbers)
        settled = not self.trainer.is_in_train or state.global_step >= SETTLED
        late = not self.trainer.is_in_train or state.global_step >= state.max_steps / 2
        self._raise(find_alarms(measured, settled, late), state.global_step)
        for writer in self._tensorboards():
            self._draw(writer, look, captions, state.global_step)

    def _said(self) -> dict[int, np.ndarray] | None:
        """The tokens of each row, if the evaluation has generated captions of all of them."""
        evaluated = self.trainer.evaluated
        if evaluated is None:
            return None
        indices, first = np.unique(evaluated[0], return_index=True)
        if len(indices) != len(self.references):
            return None
        return {int(row): evaluated[1][place] for row, place in zip(indices, first, strict=True)}

    def _look(self, said: dict[int, np.ndarray] | None) -> Look | None:
        trainer = self.trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            return None  # the main process alone does not have all weights
        trainer.model.eval()
        with trainer.averaged_weights(), trainer.compute_loss_context_manager():
            return self.watched.look(trainer.model, said, **trainer.generation_options)

    def _of_words(self) -> dict[str, float]:
        """What the references alone say, counted once."""
        if self._words is None:
            tokenizer = self.trainer.processing_class.tokenizer
            texts = [text for captions in self.references for text in captions]
            tokens = Counter(token for ids in tokenizer(texts)["input_ids"] for token in ids)
            shares = np.array(list(tokens.values())) / tokens.total()
            self._words = {
                "word_loss": float(-(shares * np.log(shares)).sum()),
                "uniform_loss": math.log(len(tokenizer)),
                "unknown_words": tokens.get(tokenizer.unk_token_id, 0) / tokens.total(),
            }
        return self._words

    def _of_log(self, metrics: dict[str, float], lr_scheduler: Any) -> dict[str, float]:
        lines = self.trainer.state.log_history
        found = {"loss": metrics["eval_loss"]} if "eval_loss" in metrics else {}
        if losses := [line["loss"] for line in lines if "loss" in line]:
            found["training_loss"] = losses[-1]
        rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
        if not rates or self.trainer.state.global_step < SETTLED:  # a warm-up begins with 0
            rates += getattr(lr_scheduler, "base_lrs", [])
        if rates:
            found["learning_rate"] = max(rates)
        if ratios := [line["eval_unique_ratio"] for line in lines if "eval_unique_ratio" in line]:
            found["most_unique"] = max(ratios)
        return found

    def _raise(self, alarms: list[Alarm], step: int) -> None:
        for alarm in alarms:
            logger.warning("step %d: %s: %s", step, alarm.cause, alarm.text)
        if alarms:
            lines: dict[str, Any] = {f"{ALARM}{alarm.cause}": alarm.text for alarm in alarms}
            self.trainer.log(lines)

    def _tensorboards(self) -> list[Any]:
        """The Trainer's own writers, so that pictures lie beside its curves."""
        callbacks = self.trainer.callback_handler.callbacks
        found = [one.tb_writer for one in callbacks if isinstance(one, TensorBoardCallback)]
        return [writer for writer in found if writer is not None]

    def _draw(self, writer: Any, look: Look | None, captions: list[str], step: int) -> None:
        if look is not None:
            for number, (one, references) in enumerate(zip(look.shown, look.references, strict=True)):
                title = f"said: {one.caption}\ntrue: {references[0]}"
                picture = np.asarray(grid_picture([one], title))
                writer.add_image(f"images/{number}", picture, step, dataformats="HWC")
        if captions:
            writer.add_histogram("captions/words", np.array([len(words) for words in tokenize(captions)]), step)
        writer.flush()


def alarms_of(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The alarms of a training's log: `step`, `cause` and `text` of each cause when it was first told."""
    found: dict[str, dict[str, Any]] = {}
    for line in log_history:
        for name, text in line.items():
            if name.startswith(ALARM):
                cause = name.removeprefix(ALARM)
                found.setdefault(cause, {"step": line["step"], "cause": cause, "text": text})
    return list(found.values())
