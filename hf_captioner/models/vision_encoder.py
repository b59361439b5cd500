"""Any transformers vision model as a source of regions."""

import copy
import inspect
import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from .compat import use_eager_attention

_DEFAULT_IMAGE_SIZE = 224  # CNN configurations have no image size; `probe_layout` works with any


@dataclass(frozen=True)
class VisionLayout:
    """
    The shape of a vision model's output, found by running the model once on the meta device (without data).

    Attributes:
        width: channels of a region (D).
        stride: (height, width) in pixels of the patch that one token stands for; `None` for feature maps, whose shape
            is the grid.
        num_prefix_tokens: class, distillation and register tokens in front of the patches.
        unused: names of parameters that the regions do not depend on (poolers, mask tokens).
        chooses_attention: whether it supports an attention implementation other than eager (SDPA, FlashAttention);
            false for a CNN.
    """

    width: int
    stride: tuple[int, int] | None
    num_prefix_tokens: int
    unused: frozenset[str]
    chooses_attention: bool


def _pair(size) -> tuple[int, int]:
    return tuple(size)[-2:] if isinstance(size, (tuple, list)) else (size, size)


def _token_stride(config: PreTrainedConfig, model: nn.Module) -> tuple[int, int]:
    patch = getattr(config, "patch_size", None)
    if patch is None:
        raise ValueError(
            f"`vision_config` must be a model of feature maps or of patches with a `patch_size`, "
            f"got model_type {config.model_type!r}"
        )
    # Hierarchical transformers (Swin) halve the grid between stages.
    merges = len(config.depths) - 1 if hasattr(config, "depths") else 0
    return tuple(side * 2**merges for side in _pair(patch))


def _chosen_layers(model: nn.Module, pixel_values: torch.Tensor, layer: int | list[int] | None) -> torch.Tensor | None:
    """
    `last_hidden_state`, or the chosen ones of `hidden_states`, their channels side by side.

    Raises:
        ValueError: if there is no such layer, or several have different grids.
    """
    if layer is None:
        return getattr(model(pixel_values=pixel_values), "last_hidden_state", None)
    states = getattr(model(pixel_values=pixel_values, output_hidden_states=True), "hidden_states", None)
    if states is None:
        return None
    layers = [layer] if isinstance(layer, int) else layer
    for index in layers:
        if not -len(states) <= index < len(states):
            raise ValueError(
                f"`vision_feature_layer` must be between {-len(states)} and {len(states) - 1}, because the vision "
                f"model has {len(states)} hidden states, got {index}"
            )
    chosen = [states[index] for index in layers]
    channels = 1 if chosen[0].ndim == 4 else 2
    grids = {tuple(size for axis, size in enumerate(state.shape) if axis not in (0, channels)) for state in chosen}
    if len(grids) > 1:
        shapes = ", ".join(f"{index}: {tuple(state.shape[1:])}" for index, state in zip(layers, chosen, strict=True))
        raise ValueError(f"`vision_feature_layer` must name hidden states of one grid, got {shapes}")
    return torch.cat(chosen, dim=channels)


def probe_layout(config: PreTrainedConfig, layer: int | list[int] | None = None) -> VisionLayout:
    """
    Runs a vision model of this configuration forward and backward on the meta device, where tensors have shapes but no
    data.

    transformers has no common attribute for the width of a vision model's output, nor for the parameters that do not
    contribute to `last_hidden_state` (DistributedDataParallel fails if such parameters are trainable). The width is
    read from the output's shape, the unused parameters from which gradients are missing.

    Args:
        config: of the vision model.
        layer: which of its hidden states are the regions; its `last_hidden_state` if `None`.

    Raises:
        ValueError: if the model can't be built, does not return feature maps or a grid of tokens, or has no such
            layer.
    """
    try:
        return _probe(config, layer)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        # Sizes that do not fit together, as transformers and torch say it.
        raise ValueError(
            f"`vision_config` of type {config.model_type!r} must describe a model that can be built and run: {error}"
        ) from error


def _probe(config: PreTrainedConfig, layer: int | list[int] | None) -> VisionLayout:
    config = copy.deepcopy(config)
    use_eager_attention(config)
    height, width = _pair(getattr(config, "image_size", None) or _DEFAULT_IMAGE_SIZE)
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        model = AutoModel.from_config(config).eval()
        if "pixel_values" not in inspect.signature(model.forward).parameters:
            raise ValueError(
                f"`vision_config` must be of a model that takes `pixel_values`, got model_type {config.model_type!r}"
            )
        pixels = torch.empty(2, getattr(config, "num_channels", 3), height, width)
        output = _chosen_layers(model, pixels, layer)
        if output is None or output.ndim not in (3, 4):
            name = "last_hidden_state" if layer is None else "hidden_states"
            raise ValueError(f"`vision_config` of type {config.model_type!r} gives no regions (`{name}`)")
        # Only the autograd graph matters here: on the meta device gradients have no values.
        output.sum().backward()
    unused = frozenset(name for name, parameter in model.named_parameters() if parameter.grad is None)
    chooses_attention = model._supports_sdpa or model._supports_flash_attn
    if output.ndim == 4:
        return VisionLayout(output.shape[1], None, 0, unused, chooses_attention)
    stride = _token_stride(config, model)
    tokens = -(-height // stride[0]) * -(-width // stride[1])
    prefix = output.shape[1] - tokens
    if prefix < 0:
        raise ValueError(
            f"`vision_config` of type {config.model_type!r} gives {output.shape[1]} tokens for a "
            f"{height} x {width} image, fewer than its grid of {tokens}"
        )
    return VisionLayout(output.shape[2], stride, prefix, unused, chooses_attention)


def load_vision_model(path_or_name: str, dtype: torch.dtype) -> nn.Module:
    """
    Loads pretrained vision weights; of a two-tower model (CLIP, SigLIP) those of the vision tower.

    Args:
        path_or_name: a local folder or a Hub repository.
        dtype: dtype of the loaded weights, regardless of the one they were saved in.

    Raises:
        FileNotFoundError: if there is neither such a folder nor, on the Hub or in its cache, such a repository.
    """
    try:
        config = AutoConfig.from_pretrained(path_or_name)
        model_class = AutoModel
        if getattr(config, "vision_config", None) is not None:
            with torch.device("meta"):
                model_class = type(AutoModel.from_config(config.vision_config))
        return model_class.from_pretrained(path_or_name, dtype=dtype)
    except OSError as error:
        raise FileNotFoundError(
            "the vision model must be a folder, or a repository that the Hub has and this machine can reach or has "
            f"downloaded before, got {str(path_or_name)!r}: {error}"
        ) from error


class VisionEncoder(nn.Module):
    """
    Turns images into regions. Feature maps and token sequences both become (B, L, D), in row-major order; class,
    distillation and register tokens are dropped, or stand in front.

    Args:
        config: configuration of any transformers vision model.
        layer: index, or indices, of the model's `hidden_states` that become the regions, the channels of several side
            by side; its `last_hidden_state` if `None`.
        keep_prefix_tokens: whether class, distillation and register tokens are regions, too.

    Attributes:
        width: channels of a region (D), of all layers together.
        num_prefix_regions: how many regions in front have no place in the grid (P).

    Raises:
        ValueError: if the model gives no regions, has no such layer, or no prefix tokens where they are to be kept.
    """

    def __init__(
        self, config: PreTrainedConfig, layer: int | list[int] | None = None, keep_prefix_tokens: bool = False
    ):
        super().__init__()
        layout = probe_layout(config, layer)
        if keep_prefix_tokens and not layout.num_prefix_tokens:
            raise ValueError(
                f"`keep_prefix_tokens` must be false for a `vision_config` of type {config.model_type!r}, which has "
                "no prefix tokens, got True"
            )
        self.layer = layer
        self.num_prefix_regions = layout.num_prefix_tokens if keep_prefix_tokens else 0
        self.width = layout.width
        self.num_channels = getattr(config, "num_channels", 3)
        self._layout = layout
        if not layout.chooses_attention:
            # The requested implementation is meant for the decoder; transformers would refuse it for a CNN.
            use_eager_attention(config)
        self.model = AutoModel.from_config(config)
        self._unused_modules = tuple(
            f"{name}."
            for name, module in self.model.named_modules()
            if (own := [f"{name}.{part}" for part, _ in module.named_parameters()]) and layout.unused.issuperset(own)
        )
        self.set_trainable(True)

    @property
    def chooses_attention(self) -> bool:
        """Whether the vision model's attention can be computed in other ways than the eager one."""
        return self._layout.chooses_attention

    def set_trainable(self, trainable: bool, pattern: str | None = None) -> None:
        """
        Freezes or unfreezes the vision model; parameters that the regions do not depend on stay frozen.

        Args:
            trainable: whether it is trained.
            pattern: a regular expression; only parameters in whose name it is found are trained, and the model stays
                in evaluation mode. All are trained if it is `None`.

        Raises:
            ValueError: if the pattern is found in the name of no parameter that the regions depend on.
        """
        chosen = {
            name
            for name, _ in self.model.named_parameters()
            if trainable and name not in self._layout.unused and (pattern is None or re.search(pattern, name))
        }
        if trainable and pattern is not None and not chosen:
            raise ValueError(f"the pattern of trainable vision parameters must be found in a name, got {pattern!r}")
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in chosen)
        self._is_trained_in_part = trainable and pattern is not None

    def train(self, mode: bool = True) -> "VisionEncoder":
        """
        As in torch, but a frozen vision model stays in evaluation mode, and so does one of which chosen parameters are
        trained: statistics of small batches would be coarser than those that its frozen layers were trained with. The
        same holds for every batch norm whose own parameters are frozen, though adapters (LoRA) beside it learn: its
        running statistics would change, and an adapter does not save them.
        """
        # `from_pretrained` replaces the parameters by new, trainable ones and then calls this; adapters may lie in a
        # module that the regions do not depend on.
        for name, parameter in self.model.named_parameters():
            if name in self._layout.unused or name.startswith(self._unused_modules):
                parameter.requires_grad_(False)
        is_trained = any(parameter.requires_grad for parameter in self.model.parameters())
        super().train(mode and is_trained and not self._is_trained_in_part)
        for module in self.model.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _BatchNorm) and own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def forward(self, pixel_values: torch.FloatTensor) -> tuple[torch.FloatTensor, tuple[int, int]]:
        """
        Args:
            pixel_values: (B, C, H, W).

        Returns:
            regions (B, L, D) and their grid (h, w), L = P + h * w.

        Raises:
            ValueError: if the input is not a batch of images of the model's channels, or its tokens fill no grid.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` must be (batch, {self.num_channels}, height, width), got {tuple(pixel_values.shape)}"
            )
        output = _chosen_layers(self.model, pixel_values, self.layer)
        if output.ndim == 4:
            return output.flatten(2).transpose(1, 2), tuple(output.shape[2:])
        grid = tuple(
            -(-side // stride) for side, stride in zip(pixel_values.shape[2:], self._layout.stride, strict=True)
        )
        patches = output.shape[1] - self._layout.num_prefix_tokens
        if grid[0] * grid[1] != patches:
            raise ValueError(
                f"`pixel_values` of size {tuple(pixel_values.shape[2:])} gives {patches} regions, "
                f"which do not fill a grid of {grid}"
            )
        return output[:, self._layout.num_prefix_tokens - self.num_prefix_regions :], grid

    def regions(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        grid: tuple[int, int] | torch.LongTensor | None = None,
    ) -> tuple[torch.FloatTensor, tuple[int, int] | None]:
        """
        Regions (B, L, D) from images, or the given ones, and their grid (h, w).

        Args:
            pixel_values: (B, C, H, W).
            image_features: (B, L, D), what this module returned for such images.
            grid: of `image_features`: (h, w), or (B, 2) with the same in every row, as batches have it.

        Returns:
            regions (B, L, D) and their grid, which is `None` for features without one.

        Raises:
            ValueError: if not exactly one of images and features is given, the features are not (B, L, D), or the grid
                does not have L - P cells or differs within a batch.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("exactly one of `pixel_values` and `image_features` must be given")
        if image_features is None:
            return self(pixel_values)
        if image_features.ndim != 3 or image_features.shape[-1] != self.width:
            raise ValueError(
                f"`image_features` must be (batch, regions, {self.width}), got {tuple(image_features.shape)}"
            )
        if grid is None:
            return image_features, None
        grids = {tuple(row) for row in torch.as_tensor(grid).reshape(-1, 2).tolist()}
        if len(grids) > 1:
            raise ValueError(f"`grid` must be the same for all images of a batch, got {sorted(grids)}")
        (grid,) = grids
        cells = image_features.shape[1] - self.num_prefix_regions
        if grid[0] * grid[1] != cells:
            raise ValueError(f"`grid` must have {cells} cells, one per region, got {grid}")
        return image_features, grid
