"""Training on what other captioners say of the same words: knowledge distillation (Hinton et al. 2015)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..models.loss_captioner import row_lengths
from .captioning_trainer import IMAGE_INPUTS, CaptioningTrainer


class DistillingTrainer(CaptioningTrainer):
    """
    A [`CaptioningTrainer`] whose captioner, the student, also learns what teachers expect at each word of the
    references. With q the mean of their probabilities for the next word and p the student's, the loss is

        (1 - w) * (the captioner's own loss) + w * (mean over the references' words of - sum over v of q(v) log p(v))

    which is word-level distillation (Kim and Rush 2016, section 3.1) with an ensemble as teacher. A reference says one
    word where others would be as good; the mean of teachers that were trained apart says which. They may be of any
    family. They see the same images, or the same `image_features`, as the student, do not learn, and are not saved.

    Beside the terms of the captioner's own loss the log has `loss_teachers`, the second term without its weight.

    Args:
        teachers: captioners with the student's vocabulary. They are put on the student's device.
        teacher_weight: w, from 0 to 1.
        *args, **kwargs: as for [`CaptioningTrainer`].

    Raises:
        InputError: if there are no teachers, one has another number of tokens, or the weight is not from 0 to 1.

    Examples:
        >>> from transformers import ResNetConfig, Seq2SeqTrainingArguments
        >>> from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, DistillingTrainer, train_tokenizer
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.data import CaptionCollator, shapes_dataset
        >>> data = shapes_dataset(8).select_columns(["image", "captions"])
        >>> tokenizer = train_tokenizer(text for texts in data["captions"] for text in texts)
        >>> processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> config = RnnCaptionerConfig(vision_config=vision, vocab_size=len(tokenizer), hidden_size=16)
        >>> lstm = RnnCaptionerForConditionalGeneration(config)  # as one would, trained ones
        >>> gru = RnnCaptionerForConditionalGeneration(RnnCaptionerConfig(**{**config.to_dict(), "cell": "gru"}))
        >>> settings = dict(max_steps=2, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True)
        >>> trainer = DistillingTrainer(
        ...     model=RnnCaptionerForConditionalGeneration(config),
        ...     args=Seq2SeqTrainingArguments("outputs", remove_unused_columns=False, **settings),
        ...     train_dataset=data,
        ...     data_collator=CaptionCollator(processor),
        ...     teachers=[lstm, gru],
        ... )
        >>> trainer.train().global_step
        {'train_runtime': ...}
        2
    """

    def __init__(self, *args, teachers: Sequence[PreTrainedModel], teacher_weight: float = 0.5, **kwargs):
        super().__init__(*args, **kwargs)
        if not teachers:
            raise InputError("`teachers` must hold at least one captioner, got none")
        if not 0 <= teacher_weight <= 1:
            raise InputError(f"`teacher_weight` must be from 0 to 1, got {teacher_weight}")
        size = self.model.config.vocab_size
        for teacher in teachers:
            if teacher.config.vocab_size != size:
                raise InputError(
                    f"`teachers` must have the student's vocabulary ({size} tokens), got {teacher.config.vocab_size}"
                )
        self.teachers = [teacher.to(self.args.device).eval() for teacher in teachers]
        self.teacher_weight = teacher_weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        own, outputs = super().compute_loss(model, {**inputs, "output_logits": True}, True, num_items_in_batch)
        labels = inputs["labels"].flatten(0, -2)
        real = labels != -100
        words = F.cross_entropy(outputs.logits[real].float(), self._expected(inputs, labels), reduction="sum")
        if num_items_in_batch is None:
            taught = words / real.sum().clamp(min=1)
        else:
            taught = words / num_items_in_batch
            if self.args.average_tokens_across_devices:  # as the Trainer does with the captioner's own loss
                taught = taught * self.accelerator.num_processes
        self.note({"loss_teachers": taught.detach()})
        loss = (1 - self.teacher_weight) * own + self.teacher_weight * taught
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _expected(self, inputs: dict[str, Any], labels: torch.LongTensor) -> torch.Tensor:
        """
        The mean of the teachers' probabilities (R, vocab_size), float32, at the R words of the labels (N, T). As in
        training, nothing is computed where the labels are padding.
        """
        seen = {name: value for name, value in inputs.items() if name in IMAGE_INPUTS}
        found = []
        for teacher in self.teachers:
            words = teacher.prepare_decoder_input_ids_from_labels(labels)
            known = {"row_lengths": row_lengths(labels)} if "row_lengths" in teacher.model.decoder_options else {}
            hidden = teacher.model(**seen, decoder_input_ids=words, use_cache=False, **known).last_hidden_state
            found.append(F.softmax(teacher.lm_head(hidden[labels != -100]).float(), -1))
        return torch.stack(found).mean(0)
