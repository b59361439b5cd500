"""The loss that all captioners share, and the terms that a family may add."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import ModelOutput

from .attention import at_least_single


@dataclass
class CaptionerOutput(Seq2SeqLMOutput):
    """
    Args:
        log: in training mode, values to log by name: the terms of the loss, which sum to it (`loss_words` and those of
            the family), and other averages.
    """

    log: dict[str, torch.Tensor] | None = None


def row_lengths(labels: torch.LongTensor) -> torch.LongTensor:
    """The tokens of each row up to its last one that is not -100: labels (N, T) -> (N,)."""
    places = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return ((labels != -100) * places).amax(dim=1)


class CaptionerLossMixin:
    """
    ( sum of the tokens' negative log-likelihoods + the family's terms ) / number of tokens.

    A family adds terms in `attention_losses`, and says with `loss_reads_attentions` whether they need attentions.
    """

    @property
    def loss_reads_attentions(self) -> bool:
        """Whether `attention_losses` needs `cross_attentions`."""
        return False

    def attention_losses(
        self, outputs: ModelOutput, token_losses: torch.Tensor, labels: torch.LongTensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        Additional terms of a family's loss.

        Args:
            outputs: the base model's output.
            token_losses: (N, T), negative log-likelihood of each token, 0 at padding.
            labels: (N, T), -100 at padding.

        Returns:
            two dictionaries: terms of the loss, each summed over captions, and further values to log.
        """
        return {}, {}

    def caption_loss(
        self,
        outputs: ModelOutput,
        labels: torch.LongTensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        row_weights: torch.FloatTensor | None = None,
        output_logits: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor] | None]:
        """
        Args:
            outputs: the base model's output.
            labels: (N, T), -100 at padding.
            num_items_in_batch, row_weights, output_logits: as for the model's `forward`.

        Returns:
            the loss, a scalar; the logits (N, T, vocab_size) or `None`; in training mode what is worth logging.
        """
        is_weighted = row_weights is not None
        logits, token_losses = self._token_losses(outputs.last_hidden_state, labels, is_weighted, output_logits)
        if is_weighted:
            token_losses = token_losses * row_weights.flatten()[:, None].to(token_losses.dtype)
        terms, statistics = {"words": token_losses.sum()}, {}
        if not is_weighted:
            more_terms, statistics = self.attention_losses(outputs, token_losses, labels)
            terms |= more_terms
        count = (labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        log = None
        if self.training:
            log = {f"loss_{name}": term.detach() / count for name, term in terms.items()} | statistics
        return sum(terms.values()) / count, logits, log

    def _token_losses(self, hidden, labels, is_weighted: bool, output_logits: bool):
        """
        Logits (N, T, V) or `None`, and the negative log-likelihood of each token (N, T), from hidden states (N, T, H)
        and labels (N, T).
        """
        if output_logits and not (self.training or is_weighted):
            logits = self.lm_head(hidden)
            losses = F.cross_entropy(at_least_single(logits).flatten(0, 1), labels.flatten(), reduction="none")
            return logits, losses.view(labels.shape)
        # The output layer takes most of a step's time and often half of a batch is padding, so only real tokens go
        # through it.
        real = labels != -100
        real_logits = self.lm_head(hidden[real])
        smoothing = self.config.label_smoothing if self.training and not is_weighted else 0.0
        real_losses = F.cross_entropy(
            at_least_single(real_logits), labels[real], reduction="none", label_smoothing=smoothing
        )
        losses = real_losses.new_zeros(labels.shape)
        losses[real] = real_losses
        logits = None
        if output_logits:
            logits = real_logits.new_zeros(*labels.shape, self.config.vocab_size)
            logits[real] = real_logits
        return logits, losses
