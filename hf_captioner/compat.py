"""
What the package, `models/` apart, uses of other libraries' internals: names with an underscore before them, and names
that no documentation promises. Every piece says what it stands in for. `tests/test_compat.py` compares each with the
library's side of it, so that it breaks first when a library changes, and finds internals that are used anywhere else.

Tried on transformers 5.17.0 and 5.23.0, datasets 4.0.0 and 5.2.0, evaluate 0.4.5 and 0.4.6.

Nothing is imported before it is needed: `metrics` may come here without importing torch. `models/` travels to the Hub
without this file and keeps its own.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate import Metric
    from transformers import Seq2SeqTrainer
else:  # mixins that stand before these classes, which are not imported here
    Metric = Seq2SeqTrainer = object


def captioner_class(config) -> type:
    """
    The class that the Auto classes would build from a captioner's configuration.

    Stands in for `AutoModelForImageTextToText.from_config(config)`, which builds the model; its pretrained vision
    weights come from a class method, `from_vision_pretrained`. Uses `_model_mapping` of transformers' Auto classes.
    """
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText._model_mapping[type(config)]


class MetricWithoutFolder(Metric):
    """
    For an `evaluate.Metric`: no folder is made when the metric is kept in memory, so that a machine whose home cannot
    be written measures too. evaluate makes one in any case. Overrides `Metric._build_data_dir`.
    """

    def _build_data_dir(self) -> str:
        return "" if self.keep_in_memory else super()._build_data_dir()


class TrainerInternals(Seq2SeqTrainer):
    """
    For a `Seq2SeqTrainer`: the internals of transformers' Trainer that training captioners has to change or to call,
    under names of our own. A mixin that goes before the Trainer among a class's bases.
    """

    push_in_progress: Any
    checkpoints_beside: Path | None = None  # where checkpoints are written, if not in the output folder

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """
        Overrides `Trainer._save`, which writes `training_args.bin` beside the model. It is a pickle that nothing
        reads, in a folder that goes to the Hub. Tied weights, which FSDP gives as two, are written once, as they are
        without it. Uses `all_tied_weights_keys`.
        """
        if self.is_fsdp_enabled and state_dict:
            tied = self.model.all_tied_weights_keys
            state_dict = {name: weight for name, weight in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _get_output_dir(self, trial) -> str:
        """Overrides `Trainer._get_output_dir`, by which the Trainer knows where checkpoints are written."""
        return super()._get_output_dir(trial) if self.checkpoints_beside is None else str(self.checkpoints_beside)

    def _save_checkpoint(self, model, trial) -> None:
        """Overrides `Trainer._save_checkpoint`, which writes `checkpoint-N` file by file, where everyone sees it."""
        self.save_checkpoint(
            Path(self._get_output_dir(trial)), lambda: super(TrainerInternals, self)._save_checkpoint(model, trial)
        )

    def save_checkpoint(self, folder: Path, write: Callable[[], None]) -> None:
        """Makes a checkpoint in this folder by calling `write`."""
        write()

    def rotate_checkpoints(self, folder: Path) -> None:
        """Deletes checkpoints beyond `save_total_limit`. Uses `transformers.trainer_utils.rotate_checkpoints`."""
        from transformers.trainer_utils import rotate_checkpoints

        best = self.state.best_model_checkpoint
        rotate_checkpoints(str(folder), self.args.save_total_limit, best_model_checkpoint=best, use_mtime=True)

    @property
    def running_loss(self) -> dict[str, float]:
        """
        The sums of the training's loss since the last line of the log and before it, and the step of that line. A
        checkpoint of the Trainer's does not have them. Uses `_tr_loss`, `_total_loss_scalar`,
        `_globalstep_last_logged`.
        """
        return {"new": self._tr_loss.item(), "logged": self._total_loss_scalar, "step": self._globalstep_last_logged}

    @running_loss.setter
    def running_loss(self, sums: dict[str, float]) -> None:
        self._tr_loss.fill_(sums["new"])
        self._total_loss_scalar, self._globalstep_last_logged = sums["logged"], sums["step"]

    def _run_epoch(self, *args, **kwargs) -> None:
        """Overrides `Trainer._run_epoch`, called for every epoch that a training begins or goes on with."""
        if self.begin_epoch(kwargs["epoch"], kwargs["train_dataloader"]):
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def begin_epoch(self, epoch: int, loader: Any) -> bool:
        """Called before an epoch, or the rest of one, with the loader of the whole epoch. Whether to train in it."""
        return True

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """
        Overrides `Trainer._push_from_checkpoint`, called after a checkpoint was saved if there is a Hub; but not for
        one that will be moved.
        """
        if self.checkpoints_beside is None:
            self.push_checkpoint(Path(checkpoint_folder))

    def push_checkpoint(self, folder: Path) -> None:
        """Pushes a checkpoint to the Hub."""
        super()._push_from_checkpoint(str(folder))

    def add_pushes(self, pushes: list[Future]) -> None:
        """
        Lets the Trainer wait for pushes before it ends. Uses `transformers.utils.PushInProgress`, which is not
        documented, and the Trainer's attribute `push_in_progress`.
        """
        from transformers.utils import PushInProgress

        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(pushes)
        else:
            self.push_in_progress.jobs.extend(pushes)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Overrides `Trainer._save_optimizer_and_scheduler`, called for a checkpoint that can be resumed from."""
        super()._save_optimizer_and_scheduler(output_dir)
        self.add_to_checkpoint(Path(output_dir))

    def add_to_checkpoint(self, folder: Path) -> None:
        """Saves what a training needs to go on, beside what the Trainer itself keeps."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Overrides `Trainer._load_from_checkpoint`, which loads the model's weights when a training is resumed."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.take_from_checkpoint(Path(resume_from_checkpoint))

    def take_from_checkpoint(self, folder: Path) -> None:
        """Takes up what [`add_to_checkpoint`] saved, after the model's weights."""

    def _get_num_items_in_batch(self, batch_samples: list[dict], device):
        """Overrides `Trainer._get_num_items_in_batch`, by whose result the loss of an accumulated step is divided."""
        return self.count_items(batch_samples, device)

    def count_items(self, batch_samples: list[dict], device: Any) -> Any:
        """Over how many items the loss of a step is a mean; by default, labels that are not -100."""
        return super()._get_num_items_in_batch(batch_samples, device)

    def to_device(self, inputs: dict) -> dict:
        """The batch where the model is. Uses `Trainer._prepare_inputs`."""
        return self._prepare_inputs(inputs)

    @property
    def generation_options(self) -> dict:
        """
        What `evaluate()` or `predict()` was told to pass on to `generate()`. Uses `_gen_kwargs`, where
        `Seq2SeqTrainer` keeps it.
        """
        return getattr(self, "_gen_kwargs", {})


class DecodingSteps:
    """
    One model's part in a search of ours: reads the prompt, goes on word by word with its cache, and follows the beams.

    Stands in for the lines that every decoding loop in transformers' `generation/utils.py` has. Uses
    `GenerationMixin._prefill`, which reads the prompt, and `_update_model_kwargs_for_generation`.
    """

    def __init__(self, model, generation_config, model_kwargs: dict[str, Any]):
        self.model, self.config = model, generation_config
        self.kwargs = {**model_kwargs, "use_cache": generation_config.use_cache}
        self._begun = False

    def __call__(self, tokens):
        """All tokens of all rows (N, t) -> the model's output for the last ones."""
        if not self._begun:
            output = self.model._prefill(tokens, self.config, self.kwargs)
        else:
            new = 1 if self.kwargs["use_cache"] else None
            inputs = self.model.prepare_inputs_for_generation(tokens, next_sequence_length=new, **self.kwargs)
            output = self.model(**inputs, return_dict=True)
        self._begun = True
        self.kwargs = self.model._update_model_kwargs_for_generation(output, self.kwargs, is_encoder_decoder=True)
        return output

    def reorder(self, rows) -> None:
        """Row i goes on from what was row `rows[i]`."""
        if self.kwargs.get("past_key_values") is not None:
            self.kwargs["past_key_values"].reorder_cache(rows)


def special_tokens(generation_config) -> tuple[int, list[int]]:
    """
    The token that fills a sequence after its end, and those that end it, as `generate()` has prepared them. Uses
    `_pad_token_tensor` and `_eos_token_tensor` of `GenerationConfig`.
    """
    eos = generation_config._eos_token_tensor
    ends = [] if eos is None else eos.tolist()
    pad = generation_config._pad_token_tensor
    return int(pad) if pad is not None else ends[0] if ends else -1, ends


def draw_samples(model, input_ids, **options):
    """Sampling as in `generate(do_sample=True)`, from a prepared prompt. Uses `GenerationMixin._sample`."""
    return type(model)._sample(model, input_ids, **options)


@contextmanager
def eager_attention(model) -> Iterator[None]:
    """
    Within it, a model of transformers computes attention in the eager way, the only one that gives its weights.

    Stands in for asking which way it uses, so that it can be given back; there is only a setter. Uses
    `config._attn_implementation`.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
