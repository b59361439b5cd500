"""The state of a recurrent decoder as a transformers cache."""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class RecurrentLayer(CacheLayerMixin):
    """
    The state of one RNN layer after the last token it has read: (h, c) for an LSTM, (h,) for a GRU, each (N, H).

    Only what belongs to a row is cached, because beam search reorders the cache row by row; what belongs to an image
    is in the encoder's output.
    """

    supports_early_init = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state: tuple[torch.Tensor, ...] | None = None
        self.num_tokens = 0

    def lazy_initialization(self, key_states=None, value_states=None) -> None:
        self.is_initialized = True

    def update(
        self, state: tuple[torch.Tensor, ...], num_tokens: int = 1, *args, **kwargs
    ) -> tuple[torch.Tensor, ...]:
        """Replaces the state by the one after `num_tokens` more tokens."""
        self.state = tuple(state)
        self.num_tokens += num_tokens
        self.is_initialized = True
        return self.state

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def _change_state(self, function) -> None:
        if self.state is not None:
            self.state = tuple(function(tensor) for tensor in self.state)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._change_state(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._change_state(lambda tensor: tensor[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change_state(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        self.state, self.num_tokens, self.is_initialized = None, 0, False


class RecurrentCache(Cache):
    """
    One [`RecurrentLayer`] per RNN layer.

    Args:
        num_layers: number of RNN layers.
    """

    def __init__(self, num_layers: int = 1):
        super().__init__(layers=[RecurrentLayer() for _ in range(num_layers)])
