"""
Attention of decoder rows to the regions of their image, and positions of words and regions.

Everything on the image's side exists once per image. With B images and N = B * k rows, the k rows of an image
adjacent, queries are viewed as (B, k, ...) against keys and values (B, heads, L, ...); k is read from the shapes.
"""

import torch
from torch import nn


def rows_per_image(num_rows: int, num_images: int) -> int:
    """
    The number k of decoder rows that each image has.

    Raises:
        ValueError: if the rows cannot be dealt evenly to the images.
    """
    if num_rows % num_images:
        raise ValueError(f"decoder rows must be a multiple of the images: {num_rows} rows, {num_images} images")
    return num_rows // num_images


class RegionProjection(nn.Module):
    """
    The image's side of an alignment: keys and values of all regions, made once per image.

    Args:
        region_size: channels of a region (D).
        attention_size: width of all heads' keys together (A).
        num_heads: number of heads.
        project_values: whether values are projected as well; else the regions themselves are averaged.
        bias: whether the projections have one.
    """

    def __init__(self, region_size: int, attention_size: int, num_heads: int, project_values: bool, bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.key = nn.Linear(region_size, attention_size, bias=bias)
        self.value = nn.Linear(region_size, attention_size, bias=bias) if project_values else None

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


class AdditiveAlignment(nn.Module):
    """
    e = v · tanh(W_k a + W_q h + b): Bahdanau et al. 2015, appendix A.1.2; Xu et al. 2015, equation 4.

    The keys hold W_k a + b. Adding a constant to v · tanh(...) would not change the weights, so v has no bias.

    Args:
        query_size: width of the state (H).
        attention_size: width of the hidden layer (A).
    """

    def __init__(self, query_size: int, attention_size: int):
        super().__init__()
        self.query = nn.Linear(query_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, state: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """
        Args:
            state: (N, H).
            keys: (B, 1, L, A).

        Returns:
            scores (B, 1, k, L).
        """
        keys = keys[:, 0]
        query = self.query(state).unflatten(0, (keys.shape[0], -1))  # (B, k, A)
        if torch.is_grad_enabled():
            scores = self.score(torch.tanh(keys[:, None] + query[:, :, None]))[..., 0]
        else:  # one row of every image at a time: beams cost no (B, k, L, A)
            scores = torch.stack(
                [self.score(torch.tanh(keys + row[:, None]))[..., 0] for row in query.unbind(1)], dim=1
            )
        return scores[:, None]


class DotProductAlignment(nn.Module):
    """
    e = (W_q h) · (W_k a) in each head, over sqrt(d) if scaled: Luong et al. 2015, section 3.1 ("general");
    Vaswani et al. 2017, equation 1.

    Args:
        query_size: width of the state (H).
        attention_size: width of all heads' queries together (A).
        num_heads: number of heads.
        scaled: whether scores are divided by the square root of a head's width.
    """

    def __init__(self, query_size: int, attention_size: int, num_heads: int = 1, scaled: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (attention_size // num_heads) ** -0.5 if scaled else 1.0
        self.query = nn.Linear(query_size, attention_size)
        # Scores that no division keeps small would begin where softmax is flat: there the weights carry the scale.
        self.query.init_gain = 1.0 if scaled else (attention_size // num_heads) ** -0.5

    def forward(self, state: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """
        Args:
            state: (N, H).
            keys: (B, heads, L, A / heads).

        Returns:
            scores (B, heads, k, L).
        """
        query = self.query(state).view(keys.shape[0], -1, self.num_heads, keys.shape[-1]).transpose(1, 2)
        return self.scale * query @ keys.transpose(-1, -2)


def sinusoidal_positions(positions: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """
    PE(pos, 2i) = sin(pos / 10000^(2i / width)), PE(pos, 2i + 1) = cos of the same: Vaswani et al. 2017, section 3.5.

    Args:
        positions: of any shape and size; there is no table that ends somewhere.
        width: channels, an even number.
        dtype: of the result; the angles have at least single precision.

    Returns:
        (*positions.shape, width).
    """
    precise = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=precise) / width
    angles = positions[..., None].to(precise) * 10000.0**-exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(dtype)


def grid_positions(grid: tuple[int, int], width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """
    Sinusoidal positions of a grid (h, w), row by row: the first half of the channels says the row, the second half the
    column (Parmar et al. 2018, section 3.1).

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
    """Weights of the expected region: softmax of scores (..., L) over the regions."""
    return scores.softmax(dim=-1)


def hard_selection(scores: torch.Tensor, sample: bool) -> torch.Tensor:
    """
    Weights of one region: 1 for it and 0 for the others (Xu et al. 2015, equations 8 and 9). No gradient reaches the
    scores.

    Args:
        scores: (..., L).
        sample: whether the region is drawn from softmax(scores), or is the most probable one.

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
    Args:
        weights: (B, heads, k, L).
        values: (B, heads, L, d).

    Returns:
        context (N, heads * d), heads side by side.
    """
    return (weights @ values).transpose(1, 2).flatten(2).flatten(0, 1)
