"""
Attention of decoder rows to the regions of their image, and positions of words and regions.

A row is one caption in the decoder: a reference caption in training, a beam or a sample in generation. Several rows
may belong to the same image; what is computed from the image (regions, keys, values) exists once per image and is not
repeated for its rows. With B images and N = B * k rows, where the k rows of an image are adjacent, queries are viewed
as (B, k, ...) against keys and values (B, heads, L, ...); k follows from the shapes.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def rows_per_image(num_rows: int, num_images: int) -> int:
    """
    The number k of decoder rows that each image has.

    Raises:
        ValueError: if the number of rows is not a multiple of the number of images.
    """
    if num_rows % num_images:
        raise ValueError(f"decoder rows must be a multiple of the images: {num_rows} rows, {num_images} images")
    return num_rows // num_images


def at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """In single precision, if it is in half: what sums of log-likelihoods need, and tanh on processors."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class RegionProjection(nn.Module):
    """
    Keys and values of all regions, made once per image.

    Args:
        region_size: channels of a region (D).
        key_size: width of all heads' keys together (A).
        num_heads: number of heads.
        project_values: whether values are projected as well; otherwise the regions themselves are the values.
        bias: whether the projections have a bias.
    """

    def __init__(
        self, region_size: int, key_size: int, num_heads: int = 1, project_values: bool = False, bias: bool = True
    ):
        super().__init__()
        self.num_heads = num_heads
        self.key = nn.Linear(region_size, key_size, bias=bias)
        self.value = nn.Linear(region_size, key_size, bias=bias) if project_values else None

    def _split_heads(self, tensor):
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L, A / heads)

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            regions: (B, L, D).

        Returns:
            keys (B, heads, L, A / heads) and values (B, heads, L, A / heads), or (B, 1, L, D) if not projected.
        """
        keys = self._split_heads(self.key(regions))
        return keys, regions[:, None] if self.value is None else self._split_heads(self.value(regions))


class Alignment(nn.Module):
    """
    How well the decoder's state and a region go together: the base of all alignments, each of which is one class.

    An alignment has two sides. What depends on the image alone, its keys and values, is made once per image by the
    module that `region_projection` returns, which the encoder holds. What depends on a row's state is in the instance,
    which the decoder holds and asks for scores. A new alignment is a subclass with `__init__`, `forward` and, where
    the defaults do not fit, the rest; its name goes into `ATTENTIONS` of the RNN captioner's configuration.

    Args:
        config: the captioner's configuration.

    Attributes:
        fields: the configuration's fields that it reads, of those that only alignments read (`attention_size`,
            `num_attention_heads`). The configuration refuses the others, which would have no effect.
        title: its name in a card's text.
    """

    fields: tuple[str, ...] = ("attention_size",)
    title: str

    @classmethod
    def region_projection(cls, config, region_size: int) -> nn.Module:
        """
        The image's side: a module from regions (B, L, D) to keys (B, heads, L, a) and values (B, heads, L, d). By
        default one head, with the regions themselves as values.
        """
        return RegionProjection(region_size, config.attention_size)

    @classmethod
    def context_size(cls, config, region_size: int) -> int:
        """Width of the context, all heads' values side by side."""
        return region_size

    def forward(self, state: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """
        Args:
            state: of N = B * k rows, (N, H).
            keys: of B images, (B, heads, L, a).

        Returns:
            scores (B, heads, k, L).
        """
        raise NotImplementedError


class _AdditiveScores(torch.autograd.Function):
    """
    v · tanh(k + q) of keys (B, L, A), queries (B, k, A) and v (A,): scores (B, k, L), for training on processors.

    tanh is made for one row per image at a time, and once more in the backward pass: (B, k, L, A), by far the largest
    tensor of a training step, is never allocated, and what is there stays in the caches. All of it is in single
    precision or better, under autocast, too: tanh takes five times as long in bfloat16.
    """

    @staticmethod
    def forward(ctx, keys, query, vector):
        ctx.save_for_backward(keys, query, vector)
        given = keys.dtype
        keys, query, vector = map(at_least_single, (keys, query, vector))
        place = torch.empty_like(keys)
        with torch.autocast(keys.device.type, enabled=False):
            rows = [torch.add(keys, row[:, None], out=place).tanh_() @ vector for row in query.unbind(1)]
        # What follows takes any type under autocast, otherwise that of the weights alone.
        return torch.stack(rows, dim=1).to(keys.dtype if torch.is_autocast_enabled(keys.device.type) else given)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """tanh' = 1 - tanh^2: the gradients of keys and queries are sums of `grad` less sums of grad * tanh^2."""
        saved = ctx.saved_tensors
        keys, query, vector, grad = map(at_least_single, (*saved, grad))
        place = torch.empty_like(keys)
        with torch.autocast(keys.device.type, enabled=False):
            of_keys, of_query, of_vector = torch.zeros_like(keys), [], torch.zeros_like(vector)
            for row, of_row in zip(query.unbind(1), grad.unbind(1), strict=True):  # (B, A), (B, L)
                tanh = torch.add(keys, row[:, None], out=place).tanh_()
                of_vector += of_row.flatten() @ tanh.flatten(0, 1)
                squares = tanh.square_()
                of_keys.addcmul_(of_row[..., None], squares)
                of_query.append((of_row[:, None] @ squares)[:, 0])
            of_keys = of_keys.neg_().add_(grad.sum(1)[..., None]).mul_(vector)
            of_query = (grad.sum(2)[..., None] - torch.stack(of_query, dim=1)) * vector
        found = of_keys, of_query, of_vector
        return tuple(one.to(given.dtype) for one, given in zip(found, saved, strict=True))


class AdditiveAlignment(Alignment):
    """
    e = v · tanh(W_k a + W_q h + b): Bahdanau et al. 2015, appendix A.1.2; Xu et al. 2015, equation 4.

    The keys hold W_k a + b. softmax ignores a constant that is added to all scores, so v needs no bias.
    """

    title = "additive"

    def __init__(self, config):
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.attention_size, bias=False)
        self.score = nn.Linear(config.attention_size, 1, bias=False)

    def forward(self, state: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """As [`Alignment.forward`], with keys (B, 1, L, A)."""
        keys = keys[:, 0]
        query = self.query(state).unflatten(0, (keys.shape[0], -1))  # (B, k, A)
        if not torch.is_grad_enabled():  # one row per image at a time, so that (B, k, L, A) is never allocated
            rows = [self.score((keys + row[:, None]).tanh_())[..., 0] for row in query.unbind(1)]
            scores = torch.stack(rows, dim=1)
        elif keys.device.type == "cpu" and not torch.compiler.is_compiling():
            scores = _AdditiveScores.apply(keys, query, self.score.weight[0])
        else:
            scores = self.score(torch.tanh(keys[:, None] + query[:, :, None]))[..., 0]
        return scores[:, None]


class BilinearAlignment(Alignment):
    """
    e = h · W a: Luong et al. 2015, section 3.1, where it is called "general". The state itself is the query, so keys
    have its width, and W has no bias: it would add the same to the scores of all regions.
    """

    fields = ()
    title = "general (bilinear)"

    def __init__(self, config):
        super().__init__()

    @classmethod
    def region_projection(cls, config, region_size: int) -> RegionProjection:
        """Keys W a (B, 1, L, H), the regions as values."""
        projection = RegionProjection(region_size, config.hidden_size, bias=False)
        # Unscaled scores would be so large at first that softmax saturates and passes no gradient.
        projection.key.init_gain = config.hidden_size**-0.5
        return projection

    def forward(self, state: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """As [`Alignment.forward`], with keys (B, 1, L, H)."""
        query = state.unflatten(0, (keys.shape[0], -1))[:, None]  # (B, 1, k, H)
        return query @ keys.transpose(-1, -2)


class DotProductAlignment(Alignment):
    """
    e = (W_q h) · (W_k a), the dot product of Luong et al. 2015, section 3.1, between projections, which give state and
    region the same width; as in Vaswani et al. 2017 both are learned.
    """

    title = "dot-product"
    is_scaled = False

    def __init__(self, config):
        super().__init__()
        self.num_heads = self.count_heads(config)
        self.query = nn.Linear(config.hidden_size, config.attention_size)
        inverse_root = (config.attention_size // self.num_heads) ** -0.5
        self.scale = inverse_root if self.is_scaled else 1.0
        # Unscaled scores would be so large at first that softmax saturates and passes no gradient, so the factor
        # 1 / sqrt(d) is put into the initial weights.
        self.query.init_gain = 1.0 if self.is_scaled else inverse_root

    @classmethod
    def count_heads(cls, config) -> int:
        return 1

    def forward(self, state: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """As [`Alignment.forward`], with keys (B, heads, L, A / heads)."""
        query = self.query(state).view(keys.shape[0], -1, self.num_heads, keys.shape[-1]).transpose(1, 2)
        return self.scale * query @ keys.transpose(-1, -2)


class ScaledDotProductAlignment(DotProductAlignment):
    """e = (W_q h) · (W_k a) / sqrt(A): Vaswani et al. 2017, equation 1."""

    title = "scaled dot-product"
    is_scaled = True


class MultiHeadAlignment(ScaledDotProductAlignment):
    """
    Scaled dot products in several heads, each with values of its own: Vaswani et al. 2017, section 3.2.2. Their output
    projection would be followed by another linear map, so there is none.
    """

    fields = ("attention_size", "num_attention_heads")
    title = "multi-head"

    @classmethod
    def count_heads(cls, config) -> int:
        return config.num_attention_heads

    @classmethod
    def region_projection(cls, config, region_size: int) -> RegionProjection:
        """Keys and values (B, heads, L, A / heads)."""
        return RegionProjection(region_size, config.attention_size, config.num_attention_heads, project_values=True)

    @classmethod
    def context_size(cls, config, region_size: int) -> int:
        return config.attention_size


def sinusoidal_positions(positions: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """
    PE(pos, 2i) = sin(pos / 10000^(2i / width)), PE(pos, 2i + 1) = cos of the same: Vaswani et al. 2017, section 3.5.

    Args:
        positions: any shape, any values: the embeddings are computed, not looked up in a table of limited length.
        width: channels, an even number.
        dtype: of the result; the angles are computed in single precision or better.

    Returns:
        (*positions.shape, width).
    """
    precise = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=precise) / width
    angles = positions[..., None].to(precise) * 10000.0**-exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(dtype)


def grid_positions(grid: tuple[int, int], width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """
    Sinusoidal positions of a grid (h, w), row by row: the first half of the channels encodes the row, the second half
    the column (Parmar et al. 2018, section 3.1).

    Args:
        grid: rows and columns.
        width: channels, a multiple of four.
        dtype, device: of the result.

    Returns:
        (h * w, width).
    """
    rows, columns = (sinusoidal_positions(torch.arange(size, device=device), width // 2, dtype) for size in grid)
    height, length = grid
    halves = [rows[:, None].expand(-1, length, -1), columns.expand(height, -1, -1)]
    return torch.cat(halves, dim=-1).flatten(0, 1)


def soft_selection(scores: torch.Tensor) -> torch.Tensor:
    """Soft attention weights: softmax of the scores (..., L) over the regions."""
    return scores.softmax(dim=-1)


def hard_selection(scores: torch.Tensor, sample: bool) -> torch.Tensor:
    """
    Hard attention weights: 1 for the chosen region and 0 for all others (Xu et al. 2015, equations 8 and 9). The
    choice is not differentiable: no gradient reaches the scores.

    Args:
        scores: (..., L).
        sample: whether to sample the region from softmax(scores); otherwise the most probable one is taken.

    Returns:
        (..., L).
    """
    if sample:
        weights = soft_selection(scores.detach())
        chosen = torch.multinomial(weights.flatten(0, -2), 1).view(*weights.shape[:-1], 1)
    else:
        chosen = scores.argmax(dim=-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, chosen, 1)


def weighted_context(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """
    Weighted sum of the values, heads concatenated.

    Args:
        weights: (B, heads, k, L).
        values: (B, heads, L, d).

    Returns:
        context (N, heads * d), heads side by side.
    """
    return (weights @ values).transpose(1, 2).flatten(2).flatten(0, 1)
