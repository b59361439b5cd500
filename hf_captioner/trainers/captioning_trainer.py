"""transformers' Trainer for captioners: several captions for each image."""

import copy
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import upload_folder
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..data import CaptionCollator
from ..errors import InputError
from ..metrics import CaptionMetrics
from ..models.tokenization_captioner import decode_captions
from .checkpoints import MANIFEST
from .resuming import ResumingTrainer
from .weight_average import OPTIMISED_WEIGHTS, WeightAverage

IMAGE_INPUTS = ("pixel_values", "image_features", "grid")  # of a batch, what an encoder takes
WITHOUT_INDEX = "rows of `eval_dataset` must have `index`, the place of their references in the metrics, got none"
_SHARED = (".safetensors", ".json", ".jinja", ".py", ".md")  # what a captioner's folder is made of


def check_hub_strategy(args: TrainingArguments) -> None:
    """Raises an `InputError` if checkpoints would be pushed as they are, with an optimiser's state: a pickle."""
    if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise InputError(
            "`hub_strategy` must be end or every_save, because what a training goes on from (optimizer.pt, "
            f"rng_state.pth) is pickled and stays on this machine, got {args.hub_strategy.value}"
        )


class CaptioningTrainer(ResumingTrainer):
    """
    A `Seq2SeqTrainer` whose batches have the image in dimension 0 and `labels` (B, k, T), as [`CaptionCollator`] makes
    them. In evaluation each image is encoded once, for the loss and for one generated caption, and the batch's `index`
    is returned as label ids. With it the metric looks up the reference texts and drops duplicates: a distributed
    sampler repeats images so that all processes get equally many.

    Args:
        vision_learning_rate: learning rate of the vision model's parameters; by default that of all others.
        ema_decay: if given, an exponential moving average of the weights is what is evaluated and saved, and what the
            model has when training has ended, see [`WeightAverage`].
        eval_data_collator: makes the batches of evaluation and prediction. By default `data_collator`, but if that is
            a [`CaptionCollator`] that draws some captions of an image, one that takes all of them: the loss of
            evaluation is over all references, and the same whenever the same model is evaluated.
        *args, **kwargs: as for `Seq2SeqTrainer`.

    Raises:
        InputError: if `args.label_smoothing_factor` is set, which would take the labels away from the model, the Hub's
            strategy would push pickles, rows that are evaluated with metrics have no `index`, `ema_decay` is not in
            [0, 1), or a checkpoint to go on from was made with it and this training lacks it, or the other way round.

    Examples:
        >>> from transformers import ResNetConfig, Seq2SeqTrainingArguments
        >>> from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, CaptioningTrainer, train_tokenizer
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.data import CaptionCollator, shapes_dataset
        >>> data = shapes_dataset(8)
        >>> tokenizer = train_tokenizer(text for texts in data["captions"] for text in texts)
        >>> processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> config = RnnCaptionerConfig(vision_config=vision, vocab_size=len(tokenizer), hidden_size=16)
        >>> settings = dict(max_steps=2, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True)
        >>> trainer = CaptioningTrainer(
        ...     model=RnnCaptionerForConditionalGeneration(config),
        ...     args=Seq2SeqTrainingArguments("outputs", remove_unused_columns=False, **settings),
        ...     train_dataset=data.select_columns(["image", "captions"]),
        ...     data_collator=CaptionCollator(processor),
        ... )
        >>> result = trainer.train()
        {'train_runtime': ...}
        >>> result.global_step, result.training_loss > 0
        (2, True)
    """

    data_collator: Callable[[list], dict]
    evaluated: tuple[np.ndarray, np.ndarray] | None = None  # `index` and generated ids of the last evaluation

    def __init__(
        self,
        *args,
        vision_learning_rate: float | None = None,
        ema_decay: float | None = None,
        eval_data_collator: Callable[[list], dict] | None = None,
        **kwargs,
    ):
        model = args[0] if args else kwargs.get("model")
        use_cache = model.config.use_cache if isinstance(model, PreTrainedModel) else True
        super().__init__(*args, **kwargs)
        # The Trainer switches it off, so that a saved captioner would say that it has none; with labels there is no
        # cache in any case.
        self.model.config.use_cache = use_cache
        if self.args.label_smoothing_factor:
            raise InputError(
                "`label_smoothing_factor` must be 0, for the model computes its own loss; set `label_smoothing` in "
                f"its configuration instead; got {self.args.label_smoothing_factor}"
            )
        check_hub_strategy(self.args)
        self.vision_learning_rate = vision_learning_rate
        self.weight_average = None if ema_decay is None else WeightAverage(self.model, ema_decay)
        if self.weight_average is not None:
            self.add_callback(self.weight_average)
        if eval_data_collator is None:
            eval_data_collator = self.data_collator
            if isinstance(eval_data_collator, CaptionCollator):
                eval_data_collator = copy.copy(eval_data_collator)
                eval_data_collator.captions_per_image = None
        self.eval_data_collator = eval_data_collator
        self._noted: dict[str, float | torch.Tensor] = defaultdict(float)
        self._noted_batches, self._noted_since = 0, 0
        self._evaluated_loss = torch.zeros(2)  # sum over reference tokens, and their number

    def get_eval_dataloader(self, *args, **kwargs) -> DataLoader:
        with self._collating_for_evaluation():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs) -> DataLoader:
        with self._collating_for_evaluation():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _collating_for_evaluation(self) -> Iterator[None]:
        """The Trainer has one collator, which every loader takes when it is made."""
        usual, self.data_collator = self.data_collator, self.eval_data_collator
        try:
            yield
        finally:
            self.data_collator = usual

    def train(self, *args, **kwargs) -> Any:
        """As in transformers; what evaluation would refuse after an epoch is refused before the first."""
        self._noted.clear()  # what an earlier training did not log
        self._noted_batches = 0
        if self.compute_metrics is not None and self.args.predict_with_generate and self.args.eval_strategy != "no":
            self._check_index(self.eval_dataset)
        return super().train(*args, **kwargs)

    def _check_index(self, dataset) -> None:
        """Raises an `InputError` if rows have no `index`, unless a collator of another kind may add it."""
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if isinstance(self.eval_data_collator, CaptionCollator) and "index" not in next(iter(part), ["index"]):
                raise InputError(WITHOUT_INDEX)

    def create_accelerator_and_postprocess(self) -> None:
        # For iterable data sets accelerate's dispatcher concatenates the batches of all processes. Ours differ in
        # length and number of captions, so each process reads the whole stream and takes its share instead.
        if self.args.accelerator_config.dispatch_batches is None:
            self.args.accelerator_config.dispatch_batches = False
        super().create_accelerator_and_postprocess()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        first = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if first and self.vision_learning_rate is not None:
            vision = {id(parameter) for parameter in self.model.vision_encoder.parameters()}
            for group in list(optimizer.param_groups):
                inside = [parameter for parameter in group["params"] if id(parameter) in vision]
                if inside:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in vision]
                    optimizer.add_param_group({**group, "params": inside, "lr": self.vision_learning_rate})
        return optimizer

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the averaged weights, if they are kept and a training runs."""
        return nullcontext() if self.weight_average is None else self.weight_average.applied()

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> Any:
        """
        As in transformers, but the loss is the sum over all reference tokens divided by their number: the Trainer's
        mean of batches depends on which images share one, and counts those twice that are repeated for the last.
        """
        self._evaluated_loss = torch.zeros(2, device=self.args.device)
        self._share_buffers()
        with self.averaged_weights():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        total, tokens = self.accelerator.reduce(self._evaluated_loss).tolist()
        if tokens:
            output.metrics[f"{metric_key_prefix}_loss"] = total / tokens
        generated = output.predictions is not None and output.label_ids is not None
        self.evaluated = (output.label_ids, output.predictions) if generated else None
        return output

    def _share_buffers(self) -> None:
        """
        Gives all processes the buffers of the first one, which are saved. Each has statistics of batch normalisation
        over its own images: under DDP since the last step, under FSDP and DeepSpeed since the beginning.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def save_model(self, *args, **kwargs) -> None:
        with self.averaged_weights():
            super().save_model(*args, **kwargs)

    def add_to_checkpoint(self, folder: Path) -> None:
        if self.weight_average is not None and self.args.should_save:
            self.weight_average.save(folder)

    def take_from_checkpoint(self, folder: Path) -> None:
        if self.weight_average is not None:
            self.weight_average.resume(folder)
        elif (folder / OPTIMISED_WEIGHTS).exists():
            raise InputError(f"`ema_decay` must be given to go on from {folder}, whose weights are averaged, got none")

    def create_model_card(self, *args, **kwargs) -> None:
        """Does nothing: `save_pretrained` has written a card, which the Trainer's draft would replace."""

    def push_checkpoint(self, folder: Path) -> None:
        """
        Pushes a checkpoint with the code that it needs. The base class would push weights and configuration without
        the code, and its own pickled arguments.
        """
        args = self.args
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if (
            not self.is_world_process_zero()
            or args.hub_strategy == HubStrategy.END
            or (busy and not args.hub_always_push)
        ):
            return
        # Copied first: the next checkpoint may delete this one's folder during the upload.
        for path in folder.iterdir():
            if path.suffix in _SHARED and path.name != MANIFEST:
                shutil.copy(path, args.output_dir)
        message = f"Training in progress, step {self.state.global_step}"
        options = dict(repo_id=self.hub_model_id, token=args.hub_token, revision=args.hub_revision, run_as_future=True)
        push = upload_folder(
            folder_path=args.output_dir, commit_message=message, ignore_patterns=["_*", "checkpoint-*"], **options
        )
        self.add_pushes([push])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        inputs = {name: value for name, value in inputs.items() if name != "index"}
        # Nothing here reads the logits, which would be the largest tensor of a step.
        loss, outputs = super().compute_loss(model, {"output_logits": False, **inputs}, True, num_items_in_batch)
        self.note(getattr(outputs, "log", None) or {})
        self._noted_batches += 1
        return (loss, outputs) if return_outputs else loss

    def note(self, values: dict[str, float | torch.Tensor]) -> None:
        """
        Adds the values of one batch to the next line of the log. Terms of the loss, `loss_...`, are summed over the
        batches of a step (gradient accumulation, processes) like the loss itself; other values are averaged.
        """
        if not self._noted:  # the first batch since the last line, also after a resume
            self._noted_since = self.state.global_step
        for name, value in values.items():
            self._noted[name] = self._noted[name] + value

    def running_sums(self) -> dict[str, Any]:
        noted = {name: float(total) for name, total in self._noted.items()}
        return super().running_sums() | {"noted": noted, "since": self._noted_since, "batches": self._noted_batches}

    def go_on_with(self, sums: dict[str, Any]) -> None:
        super().go_on_with(sums)
        self._noted.update(sums["noted"])
        self._noted_since, self._noted_batches = sums["since"], sums["batches"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in transformers; the line with the training loss also gets the values noted since the previous one."""
        if "loss" in logs and self._noted:
            steps = self.state.global_step - self._noted_since
            for name, total in self._noted.items():
                total = self.accelerator.gather(torch.as_tensor(total, dtype=torch.float32, device=self.args.device))
                is_term = name.startswith("loss_")
                logs[name] = float(total.sum() / steps) if is_term else float(total.mean() / self._noted_batches)
            self._noted.clear()
            self._noted_batches = 0
        super().log(logs, *args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Returns:
            loss, generated ids (B, tokens) unless `prediction_loss_only`, and the batch's `index` (B,).

        Raises:
            InputError: if there are metrics to compute, and no `index`: without it the Trainer would leave them out.
        """
        inputs = self.to_device(inputs)
        index, labels = inputs.get("index"), inputs.get("labels")
        generates = self.args.predict_with_generate and not prediction_loss_only
        if generates and index is None and self.compute_metrics is not None:
            raise InputError(WITHOUT_INDEX)
        if isinstance(self.model, FSDPModule):
            self.model.unshard()  # what the model itself would do, whose parts are called here one by one
        with torch.no_grad(), self.compute_loss_context_manager():
            encoder_outputs = self.model.get_encoder()(
                **{name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
            )
            loss = None
            if labels is not None:
                labels = self._without_repeated(labels)
                loss = self.model(encoder_outputs=encoder_outputs, labels=labels, output_logits=False).loss.detach()
                tokens = (labels != -100).sum()
                self._evaluated_loss += torch.stack([loss * tokens, tokens]).to(self._evaluated_loss)
            if not generates:
                return loss, None, None
            tokens = self.model.generate(encoder_outputs=encoder_outputs, **(gen_kwargs or self.generation_options))
        return loss, tokens, index

    def _without_repeated(self, labels: torch.Tensor) -> torch.Tensor:
        """
        Labels (B, k, T) of the images that were not evaluated before, -100 in others: for the last step, images are
        repeated so that every process has a batch of the same size. Those of the first process come first.
        """
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        place = self.args.process_index * len(labels) + torch.arange(len(labels), device=labels.device)
        return labels.masked_fill((place >= state.remainder)[:, None, None], -100)


def caption_metrics(
    tokenizer: PreTrainedTokenizerBase, references: Sequence[Sequence[str]]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    The Trainer's `compute_metrics` for captions.

    Args:
        tokenizer: decodes the generated captions.
        references: the captions of each image; the `index` of an evaluation row is the image's position here.

    Returns:
        a function from an `EvalPrediction`, whose `label_ids` are indices, to the scores of [`CaptionMetrics`].

    Examples:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.trainers import caption_metrics
        >>> references = [["a dog runs"], ["a cat sleeps"]]
        >>> tokenizer = train_tokenizer(text for texts in references for text in texts)
        >>> generated = np.array(tokenizer(["a cat sleeps", "a dog sleeps"])["input_ids"])
        >>> scores = caption_metrics(tokenizer, references)(EvalPrediction(generated, label_ids=np.array([1, 0])))
        >>> round(scores["exact_match"], 2), round(scores["bleu_1"], 2)
        (0.5, 0.83)
    """
    metric = CaptionMetrics()

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        indices, first = np.unique(prediction.label_ids, return_index=True)
        return metric.compute(
            predictions=decode_captions(tokenizer, prediction.predictions[first]),
            references=[references[index] for index in indices],
        )

    return compute
