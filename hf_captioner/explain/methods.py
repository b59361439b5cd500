"""
Where a captioner looked for each token: its attention, the attention of its encoders rolled out, and two methods that
need no attention. All of them read a given caption token by token, so it does not matter how it was found.

Every method takes a captioner of any family in evaluation mode, one image's `pixel_values` (1, C, H, W) and its
`tokens` (T + 1), the start token first and nothing behind the end, and gives maps (T, h, w) over the grid of regions.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..compat import eager_attention
from ..errors import InputError

CHUNK = 32  # versions of an image that are looked at together


def log_probabilities(model: PreTrainedModel, tokens: torch.Tensor, **images) -> torch.Tensor:
    """
    Log-probabilities of every token of one caption, for several images or several versions of one.

    Args:
        model: a captioner.
        tokens: (T + 1), start token first.
        **images: `pixel_values` (M, C, H, W), or `image_features` (M, L, D) and `grid`.

    Returns:
        (M, T).
    """
    rows = tokens.expand(len(next(iter(images.values()))), -1)
    logits = model(**images, decoder_input_ids=rows[:, :-1], use_cache=False).logits
    precision = torch.promote_types(logits.dtype, torch.float32)  # half of it would hide small differences
    return logits.log_softmax(-1, dtype=precision).gather(-1, rows[:, 1:, None])[..., 0]


def of_versions(model: PreTrainedModel, tokens: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """[`log_probabilities`] (M, T) of many versions (M, C, H, W) of an image, a few at a time."""
    return torch.cat([log_probabilities(model, tokens, pixel_values=part) for part in pixel_values.split(CHUNK)])


def covered(pixel_values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """
    An image (1, C, H, W) with some cells of a grid covered in its mean colour, once for each of M patterns of hidden
    cells (M, h, w) -> (M, C, H, W).
    """
    mask = nn.functional.interpolate(hidden[:, None].to(pixel_values.dtype), size=pixel_values.shape[2:])
    return torch.where(mask > 0.5, pixel_values.mean((2, 3), keepdim=True), pixel_values)


@torch.no_grad()
def attention(model: PreTrainedModel, pixel_values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    Attention weights of the decoder's last layer, the mean over its heads; of hard attention the region it chose. A
    token's map is what `attention_maps` gives for its step of `generate()`.

    Raises:
        InputError: if the model does not attend.
    """
    weights, grid = _weights(model, pixel_values, tokens)
    return weights[:, model.vision_encoder.num_prefix_regions :].unflatten(-1, grid)


def _weights(
    model: PreTrainedModel, pixel_values: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Attention of each token (T, L) to all regions, prefix tokens that are kept included, and the grid."""
    if not model.config.attends:
        raise InputError("`method` must be gradient or occlusion for a captioner without attention, got attention")
    regions, grid = model.vision_encoder(pixel_values)
    outputs = model(
        image_features=regions, grid=grid, decoder_input_ids=tokens[None, :-1], use_cache=False, output_attentions=True
    )
    return outputs.cross_attentions[-1][0].mean(0), grid


def roll_out(attentions: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """
    Attention of several layers together (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers"): half
    of what a layer gives is its input, which goes on beside the attention, so its weights are (A + I) / 2, and layers
    follow one another.

    Args:
        attentions: (1, heads, S, S) of each layer, the first one first; there must be one.

    Returns:
        (S, S): how much of each input token is in each output token; rows sum to 1.
    """
    own = torch.eye(attentions[0].shape[-1], dtype=attentions[0].dtype, device=attentions[0].device)
    joint = own
    for layer in attentions:
        joint = (layer[0].mean(0) + own) / 2 @ joint
    return joint


@torch.no_grad()
def vision_rollout(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor | None:
    """
    What every region consists of, by the rolled-out attention of a vision model such as ViT, up to the layer that the
    captioner reads.

    Returns:
        (L, patches): rows are regions, of prefix tokens those that the captioner keeps; columns have no place for
        class and register tokens, and rows sum to 1 again.
        `None` if the vision model does not have attention from every token to every other.
    """
    encoder = model.vision_encoder
    if not encoder.chooses_attention:
        return None
    with eager_attention(encoder.model):
        outputs = encoder.model(pixel_values=pixel_values, output_attentions=True)
    attentions = getattr(outputs, "attentions", None) or ()
    regions, grid = encoder(pixel_values)
    patches = grid[0] * grid[1]
    shapes = {None if layer is None else tuple(layer.shape) for layer in attentions}
    shape = shapes.pop() if len(shapes) == 1 else None
    if shape is None or len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3] or shape[3] < patches:
        return None  # as of windows that attend by themselves
    read = encoder.layer if isinstance(encoder.layer, list) else [-1 if encoder.layer is None else encoder.layer]
    flows = []
    for index in read:
        below = attentions[: index % (len(attentions) + 1)]  # hidden state 0 is the embeddings, before all layers
        joint = roll_out(below) if below else torch.eye(shape[3]).to(pixel_values)
        joint = joint[-regions.shape[1] :, -patches:]
        flows.append(joint / joint.sum(-1, keepdim=True))
    return torch.stack(flows).mean(0)


@torch.no_grad()
def rollout(model: PreTrainedModel, pixel_values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    [`attention`], led on through the layers in which regions attend to one another: the captioner's encoder layers,
    then those of a vision model such as ViT.

    Raises:
        InputError: if the model does not attend, or there are no such layers.
    """
    looked, grid = _weights(model, pixel_values, tokens)
    flow = vision_rollout(model, pixel_values)
    layers = model.get_encoder()(pixel_values=pixel_values, output_attentions=True).attentions
    if flow is None and not layers:
        raise InputError(
            "`method` rollout must have an encoder that attends from every region to every other, got "
            f"{model.vision_encoder.model.config.model_type!r} without encoder layers"
        )
    if layers:
        looked = looked @ roll_out(layers)
    looked = looked[:, model.vision_encoder.num_prefix_regions :] if flow is None else looked @ flow
    return looked.unflatten(-1, grid)


def integrated_gradients(
    model: PreTrainedModel, pixel_values: torch.Tensor, tokens: torch.Tensor, steps: int = 32
) -> torch.Tensor:
    """
    Integrated gradients (Sundararajan et al. 2017) of each token's log-probability by the regions. The path begins at
    the regions of a blank image of the same mean colour. Computed by captum.

    Args:
        model, pixel_values, tokens: see the head of this file.
        steps: points of the path.

    Returns:
        (T, h, w), positive where a region speaks for the token. Completeness: but for the finite steps, a map's sum is
        the log-probability with the image less the one with the blank image; the share of prefix tokens that the
        captioner keeps has no place in it. Not of hard attention, which jumps from
        region to region, and no gradient knows of jumps.

    Raises:
        InputError: if captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients
    except ModuleNotFoundError as error:
        raise InputError(
            "`method` gradient must have the package captum: pip install 'hf_captioner[explain]'"
        ) from error
    with torch.no_grad():
        regions, grid = model.vision_encoder(pixel_values)
        blank, _ = model.vision_encoder(pixel_values.mean((2, 3), keepdim=True).expand_as(pixel_values))
    count = len(tokens) - 1

    def said(features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        found = log_probabilities(model, tokens, image_features=features, grid=grid)
        return found.gather(1, places[:, None])[:, 0]

    with torch.enable_grad():
        maps = IntegratedGradients(said).attribute(
            regions.expand(count, -1, -1).requires_grad_(),
            baselines=blank.expand(count, -1, -1),
            additional_forward_args=torch.arange(count, device=tokens.device),
            n_steps=steps,
            internal_batch_size=max(CHUNK, count),
        )
    return maps.detach().sum(-1)[:, model.vision_encoder.num_prefix_regions :].unflatten(-1, grid)


@torch.no_grad()
def occlusion(model: PreTrainedModel, pixel_values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    By how much each token's log-probability falls when the pixels of one cell are covered in the image's mean colour
    (Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks"). One pass of the vision model for
    each cell.

    Returns:
        (T, h, w), positive where a cell speaks for the token.
    """
    _, grid = model.vision_encoder(pixel_values)
    cells = grid[0] * grid[1]
    hidden = torch.eye(cells, dtype=torch.bool, device=pixel_values.device).unflatten(-1, grid)
    with_all = log_probabilities(model, tokens, pixel_values=pixel_values)
    falls = [with_all - of_versions(model, tokens, covered(pixel_values, part)) for part in hidden.split(CHUNK)]
    return torch.cat(falls).T.unflatten(-1, grid)


METHODS: dict[str, Callable[[PreTrainedModel, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "attention": attention,
    "rollout": rollout,
    "gradient": integrated_gradients,
    "occlusion": occlusion,
}
"""By name, what makes a map of each token (T, h, w), given the captioner, its pixels and its tokens.

Examples:
    >>> from hf_captioner.explain import METHODS
    >>> list(METHODS)
    ['attention', 'rollout', 'gradient', 'occlusion']
"""

SIGNED = ("gradient", "occlusion")  # whose maps say what speaks against a word, too


def token_maps(
    model: PreTrainedModel, pixel_values: torch.Tensor, tokens: torch.Tensor, method: str = "attention"
) -> torch.Tensor:
    """
    Where a captioner looked for each token of a caption: by its attention, by the attention of its encoders rolled out
    (Abnar and Zuidema 2020), by integrated gradients (Sundararajan et al. 2017), or by covering parts of the image
    (occlusion, Zeiler and Fergus 2014).

    Args:
        model: a captioner of any family in evaluation mode.
        pixel_values: (1, C, H, W).
        tokens: (T + 1), start token first, without padding.
        method: one of `METHODS`.

    Returns:
        (T, h, w). Of attention and rollout weights that sum to 1; of gradient and occlusion what regions add to the
        token's log-probability, negative where they speak against it.

    Raises:
        InputError: if the method is unknown, the model lacks what it needs, or is in training mode.

    Examples:
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.explain import token_maps
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> config = RnnCaptionerConfig(vision_config=vision, vocab_size=40, hidden_size=16)
        >>> model, image = RnnCaptionerForConditionalGeneration(config).eval(), torch.randn(1, 3, 32, 32)
        >>> tokens = torch.tensor([2, 7, 9, 3])  # the start, two words, the end
        >>> {method: token_maps(model, image, tokens, method).shape for method in ("attention", "occlusion")}
        {'attention': torch.Size([3, 4, 4]), 'occlusion': torch.Size([3, 4, 4])}
    """
    if method not in METHODS:
        raise InputError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}")
    if model.training:
        raise InputError("`model` must be in evaluation mode, got one in training mode")
    return METHODS[method](model, pixel_values, tokens)


__all__ = [
    "METHODS",
    "SIGNED",
    "attention",
    "covered",
    "integrated_gradients",
    "log_probabilities",
    "occlusion",
    "of_versions",
    "roll_out",
    "rollout",
    "token_maps",
    "vision_rollout",
]
