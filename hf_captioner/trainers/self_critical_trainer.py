"""Training by reward inside transformers' Trainer: self-critical sequence training (Rennie et al. 2017)."""

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..errors import InputError
from ..metrics import CaptionReward, tokenize
from ..metrics.collapse import ends_badly
from .captioning_trainer import IMAGE_INPUTS, CaptioningTrainer

BASELINES = ("greedy", "leave_one_out")
CANDIDATES = ("samples", "beams")


class SelfCriticalTrainer(CaptioningTrainer):
    """
    A [`CaptioningTrainer`] that samples captions and raises the probability of those whose reward exceeds a baseline.
    The loss is the mean over samples y of -(r(y) - b) log p(y). Its gradient is an unbiased estimate of that of the
    negative expected reward (Williams 1992), because b does not depend on y.

    Captions are sampled from the whole distribution, including `<unk>`. With `candidates="beams"` they are what beam
    search finds (Cornia et al. 2020, section 3.3): no unbiased estimate, but it puts in order what beam search chooses
    from, whereas samples above all teach the captioner to be certain of few captions. Dropout is off in sampling and
    in the loss, as it is when the captioner is used. Hard attention takes its most probable region. Rewards enter the
    model's loss as `row_weights`, so any captioner of this package can be trained, from images or from
    `image_features`.

    Beside the loss the log has `reward` and `reward_std` (over samples), `reward_baseline`, `caption_length` (words),
    `bad_ending_rate` (the caption ends in a determiner, a preposition or a conjunction, or does not end), and the
    seconds of a batch: `seconds_sampling`, `seconds_reward`, `seconds_gradient` (forward and backward).

    Args:
        references: the captions of each image; rows of `train_dataset` have the image's position here as `index`.
        reward: a function that returns one number per caption. It is called with these keyword arguments, each with
            one entry per caption: `captions` (texts), `references` (the image's captions), `images` (the image's index
            in `references` above) and `ended` (whether the caption ends with EOS). What it does not need, it may take
            as `**kwargs`. By default CIDEr-D, see [`CaptionReward`].
        samples_per_image: number of candidates for every image.
        candidates: `"samples"`, or `"beams"`, the captions of a beam search with as many beams.
        cross_entropy: weight of the mean negative log-likelihood of reference words, which is added to the loss. Of
            the captions that a batch has of an image, one is drawn in every step.
        baseline: `"leave_one_out"`: the mean reward of the image's other samples; `"greedy"`: the reward of the
            caption found by greedy search.
        *args, **kwargs: as for [`CaptioningTrainer`].

    Raises:
        InputError: if there are no references, the baseline or the kind of candidates is unknown, there are too few
            candidates for the baseline, or the weight is negative.

    Examples:
        >>> from transformers import ResNetConfig, Seq2SeqTrainingArguments
        >>> from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, SelfCriticalTrainer, train_tokenizer
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.data import CaptionCollator, shapes_dataset
        >>> data = shapes_dataset(8)
        >>> data = data.select_columns(["image", "captions"]).add_column("index", list(range(8)))
        >>> tokenizer = train_tokenizer(text for texts in data["captions"] for text in texts)
        >>> processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> config = RnnCaptionerConfig(vision_config=vision, vocab_size=len(tokenizer), hidden_size=16)
        >>> settings = dict(max_steps=2, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True)
        >>> trainer = SelfCriticalTrainer(
        ...     model=RnnCaptionerForConditionalGeneration(config),  # or, as one would, a trained one
        ...     args=Seq2SeqTrainingArguments("outputs", remove_unused_columns=False, **settings),
        ...     train_dataset=data,
        ...     data_collator=CaptionCollator(processor),
        ...     processing_class=processor,
        ...     references=data["captions"][:],
        ... )
        >>> trainer.train().global_step
        {'train_runtime': ...}
        2
    """

    def __init__(
        self,
        *args,
        references: Sequence[Sequence[str]],
        reward: Callable[..., Sequence[float]] | None = None,
        samples_per_image: int = 5,
        baseline: str = "leave_one_out",
        candidates: str = "samples",
        cross_entropy: float = 0.0,
        **kwargs,
    ):
        if references is None or not len(references):
            raise InputError("`references` must hold the captions of the training images, got none")
        if baseline not in BASELINES:
            raise InputError(f"`baseline` must be one of {', '.join(BASELINES)}, got {baseline!r}")
        if candidates not in CANDIDATES:
            raise InputError(f"`candidates` must be one of {', '.join(CANDIDATES)}, got {candidates!r}")
        if cross_entropy < 0:
            raise InputError(f"`cross_entropy` must be at least 0, got {cross_entropy}")
        fewest = 2 if baseline == "leave_one_out" else 1
        if samples_per_image < fewest:
            raise InputError(
                f"`samples_per_image` must be at least {fewest} for {baseline!r}, got {samples_per_image}"
            )
        super().__init__(*args, **kwargs)
        self.references = references
        self.reward = CaptionReward(references) if reward is None else reward
        self.samples_per_image = samples_per_image
        self.baseline = baseline
        self.candidates = candidates
        self.cross_entropy = cross_entropy

    def count_items(self, batch_samples: list[dict], device: torch.device) -> torch.Tensor:
        # The loss is a mean over samples, whose number is fixed. Dividing by the number of their tokens would make the
        # divisor depend on the samples and the gradient estimate biased.
        count = torch.tensor(self.samples_per_image * sum(len(batch["labels"]) for batch in batch_samples))
        if self.args.world_size > 1 and self.args.average_tokens_across_devices:
            count = self.accelerator.gather(count.to(device)).sum()
        return count.to(device)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        start, before = time.perf_counter(), dict(self._noted)
        loss = super().training_step(*args, **kwargs)
        outside = sum(self._noted[name] - before.get(name, 0.0) for name in ("seconds_sampling", "seconds_reward"))
        self.note({"seconds_gradient": time.perf_counter() - start - outside})
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        if "index" not in inputs:
            raise InputError("rows of `train_dataset` must have `index`, the place of their `references`, got none")
        images = inputs["index"].repeat_interleave(self.samples_per_image).tolist()
        if max(images) >= len(self.references):
            raise InputError(
                f"`index` must be below the number of `references`, {len(self.references)}, got {max(images)}"
            )
        seen = {name: value for name, value in inputs.items() if name in IMAGE_INPUTS}
        with without_dropout(self.model):
            start = time.perf_counter()
            labels, greedy = self._sample(seen)
            sampled = time.perf_counter()
            rewards, baseline = self._judge(labels, greedy, images)
            self.note({"seconds_sampling": sampled - start, "seconds_reward": time.perf_counter() - sampled})
            weights = (rewards - baseline).to(labels.device, torch.float32)
            if self.cross_entropy:
                labels, weights = self._with_references(labels, weights, inputs["labels"])
            inputs = {**seen, "labels": labels, "row_weights": weights}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _with_references(
        self, labels: torch.Tensor, weights: torch.Tensor, references: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Candidates (B, k, T) with their weights (B, k), and as row k + 1 one of each image's references (B, r, S). The
        loss is divided by the number of candidates; with this weight, the mean over reference words counts
        `cross_entropy` times in it.
        """
        # Drawn here and not by the collator, which is a batch ahead: a resumed training draws the same ones.
        chosen = torch.multinomial((references != -100).any(-1).float(), 1)  # (B, 1)
        references = references.gather(1, chosen[..., None].expand(-1, -1, references.shape[-1]))
        words = (references != -100).sum().clamp(min=1)
        weight = (self.cross_entropy * weights.numel() / words).to(weights.dtype)
        length = max(labels.shape[-1], references.shape[-1])
        rows = [F.pad(part, (0, length - part.shape[-1]), value=-100) for part in (labels, references)]
        return torch.cat(rows, dim=1), torch.cat([weights, weight.expand(len(weights), 1)], dim=1)

    @torch.no_grad()
    def _sample(self, seen: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Labels (B, k, T) of the candidates, and of greedy captions (B, 1, T) if they are the baseline."""
        model = self.model
        usual = model.generation_config
        encoder_outputs = model.get_encoder()(**seen)
        greedy = None
        if self.baseline == "greedy":
            greedy = model.generate(encoder_outputs=encoder_outputs, num_beams=1, do_sample=False)
        # Samples must come from the distribution that is trained, so settings that change it (suppressed tokens,
        # repetition penalties, temperature) are off. The model's generation configuration is replaced as a whole,
        # because `generate` would fill in missing settings from it.
        search = dict(do_sample=True, top_k=0)
        if self.candidates == "beams":
            search = dict(do_sample=False, num_beams=self.samples_per_image, suppress_tokens=usual.suppress_tokens)
        model.generation_config = GenerationConfig(
            **search,
            num_return_sequences=self.samples_per_image,
            max_new_tokens=usual.max_new_tokens,
            eos_token_id=model.eos_token_ids or None,
            pad_token_id=model.config.pad_token_id,
            bos_token_id=model.config.bos_token_id,
            decoder_start_token_id=model.config.decoder_start_token_id,
        )
        try:
            samples = model.generate(encoder_outputs=encoder_outputs)
        finally:
            model.generation_config = usual
        return self._labels(samples, self.samples_per_image), None if greedy is None else self._labels(greedy, 1)

    def _labels(self, sequences: torch.Tensor, rows: int) -> torch.Tensor:
        """Generated ids (B * k, 1 + T) -> labels (B, k, T): no start, nothing after the end."""
        tokens = sequences[:, 1:]
        return tokens.masked_fill(self.model.ends_before(tokens), -100).unflatten(0, (-1, rows))

    def _judge(self, labels: torch.Tensor, greedy: torch.Tensor | None, images: list[int]):
        """Rewards and baselines, both (B, k)."""
        rewards = self._rewards(labels, images, log=True)
        if greedy is None:
            others = rewards.shape[1] - 1
            baseline = (rewards.sum(1, keepdim=True) - rewards) / others
        else:
            baseline = self._rewards(greedy, images[:: self.samples_per_image]).expand_as(rewards)
        self.note({"reward": rewards.mean(), "reward_std": rewards.std(), "reward_baseline": baseline.mean()})
        return rewards, baseline

    def _rewards(self, labels: torch.Tensor, images: list[int], log: bool = False) -> torch.Tensor:
        """Rewards (B, k), float64, of labels (B, k, T)."""
        rows, ends = labels.flatten(0, 1).tolist(), set(self.model.eos_token_ids)
        ended = [not ends.isdisjoint(row) for row in rows]
        words = [[token for token in row if token != -100 and token not in ends] for row in rows]
        captions = self._tokenizer.batch_decode(words)  # `<unk>` is kept as text
        references = [self.references[image] for image in images]
        found = self.reward(captions=captions, references=references, images=images, ended=ended)
        rewards = torch.as_tensor(np.asarray(found, dtype=np.float64)).flatten()
        if len(rewards) != len(captions):
            raise InputError(f"`reward` must return a number for each of {len(captions)} captions, got {len(rewards)}")
        if not rewards.isfinite().all():
            worst = int((~rewards.isfinite()).nonzero()[0])
            raise InputError(f"`reward` must be finite, got {rewards[worst]} for {captions[worst]!r}")
        if log:
            said = tokenize(captions)
            bad = [not end or ends_badly(text) for text, end in zip(said, ended, strict=True)]
            lengths = [len(text) for text in said]
            self.note({"bad_ending_rate": float(np.mean(bad)), "caption_length": float(np.mean(lengths))})
        return rewards.view(labels.shape[:2])

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return getattr(self.processing_class, "tokenizer", self.processing_class)


@contextmanager
def without_dropout(model: nn.Module):
    """Evaluation mode, except that RNNs stay in training mode with dropout 0: cuDNN has no backward pass otherwise."""
    training = [module for module in model.modules() if module.training]
    dropouts = {module: module.dropout for module in model.modules() if isinstance(module, nn.RNNBase)}
    model.eval()
    for rnn in dropouts:
        rnn.train()
        rnn.dropout = 0.0
    try:
        yield
    finally:
        model.eval()
        for module in training:
            module.training = True
        for rnn, dropout in dropouts.items():
            rnn.dropout = dropout
