"""Whose an output folder is: a new training's, one that goes on, or one that has finished."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainingArguments

from ..errors import InputError
from ..files import replacing
from ..trainers.checkpoints import UNFINISHED, checkpoints, newest_whole

RUN = "_run.json"  # pushes leave out what begins with "_"
# What may differ when a training goes on: it changes nothing in what is learned.
FREE = {
    "check_images",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "disable_tqdm",
    "feature_cache",
    "log_level",
    "log_level_replica",
    "num_samples",
    "output_dir",
    "project",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "save_total_limit",
}


class TrainingRun:
    """
    An output folder and the settings that a training is begun with there. `_run.json` in the folder keeps them.

    Args:
        arguments: the groups of settings, dataclasses; transformers' own is the last one.
    """

    def __init__(self, *arguments: Any):
        self.args: Seq2SeqTrainingArguments = arguments[-1]
        self.folder = Path(self.args.output_dir)
        settings = {name: value for group in arguments[:-1] for name, value in dataclasses.asdict(group).items()}
        settings |= self.args.to_dict() | {"processes": self.args.world_size}
        # A token is among the Hub's settings.
        settings = {name: value for name, value in settings.items() if not name.startswith("hub_")}
        self.settings = json.loads(json.dumps(settings, default=str))

    def _known(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / RUN).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise InputError(f"{self.folder / RUN} must be what a training wrote, got a damaged file") from None

    def _write(self, finished: bool, **more: Any) -> None:
        if self.args.process_index == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / RUN) as path:
                known = {"finished": finished, "settings": self.settings, **more}
                path.write_text(json.dumps(known, indent=2) + "\n")

    def begin(self) -> None:
        self._write(finished=False)

    def finish(self, left_out: list[str]) -> None:
        """Keeps which images were left out: whoever gives the command again is told so again."""
        self._write(finished=True, left_out=left_out)

    def left_out(self) -> list[str]:
        """Which images the training that has finished here was without, each with its reason."""
        return (self._known() or {}).get("left_out", [])

    def is_finished(self) -> bool:
        """Whether the very same training has been done, so that nothing is left to do."""
        known = None if self.args.resume_from_checkpoint else self._known()
        return known is not None and known["finished"] and not self._changes(known)

    def _changes(self, known: dict[str, Any]) -> list[str]:
        """How these settings differ from those that a training was begun with."""
        before = known["settings"]
        return [
            f"`{name}` {value!r} in place of {before[name]!r}"
            for name, value in self.settings.items()
            if name not in FREE and name in before and before[name] != value
        ]

    def resume_point(self) -> Path | None:
        """
        The checkpoint to go on from, or `None` to begin anew. Says which newer checkpoints were passed over, and
        removes what a stopped run has half written.

        Raises:
            InputError: if that would replace another training, or the checkpoint is not whole.
        """
        wanted = self.args.resume_from_checkpoint
        if self.args.process_index == 0:
            shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
        if wanted in ("last", "true", "True"):
            return self._last()
        if wanted in (None, ""):
            known = self._known()
            if known is not None and not known["finished"]:
                if changes := self._changes(known):
                    raise InputError(
                        "`output_dir` must be new, or hold an unfinished training with the same settings; for "
                        f"{self.folder}, got {', '.join(changes)}; --resume_from_checkpoint last goes on all the same"
                    )
                return self._last()
        elif wanted not in ("false", "False"):
            if not Path(wanted, "trainer_state.json").exists():
                raise InputError(f"`resume_from_checkpoint` must be a checkpoint's folder, or last, got {wanted}")
            return Path(wanted)
        if earlier := [*checkpoints(self.folder), *self.folder.glob(RUN), *self.folder.glob("config.json")]:
            raise InputError(
                "`output_dir` must be new, or go on from its checkpoints with --resume_from_checkpoint last, "
                f"got {earlier[0]}"
            )
        return None

    def _last(self) -> Path | None:
        checkpoint, passed_over = newest_whole(self.folder)
        for reason in passed_over:
            self.say(f"passed over {reason}")
        if checkpoint is not None:
            self.say(f"going on from {checkpoint}")
        return checkpoint

    def say(self, line: str) -> None:
        if self.args.process_index == 0:
            print(line, flush=True)
