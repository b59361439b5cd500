"""Low-rank adapters for vision models that are too large to be trained themselves."""

import re

from torch import nn

from ..errors import InputError
from ..models.vision_encoder import VisionEncoder


def add_adapters(vision_encoder: VisionEncoder, rank: int, pattern: str | None = None):
    """
    Freezes the vision model and puts trainable low-rank matrices (LoRA, Hu et al. 2022) beside the weights of its
    layers. To begin with they add nothing. Needs peft.

    Args:
        vision_encoder: of a captioner; its layers are replaced.
        rank: of the matrices; they count twice.
        pattern: a regular expression. Linear layers and convolutions in whose name, as `vision_encoder.model` has it,
            it is found get adapters; by default all linear layers. Grouped convolutions get none.

    Returns:
        a `peft.PeftModel`, whose `merge_and_unload()` adds the matrices to the weights and takes the adapters out.

    Raises:
        InputError: if there are no such layers.
    """
    from peft import LoraConfig, get_peft_model

    def fits(name: str, module: nn.Module) -> bool:
        if pattern is None:
            return isinstance(module, nn.Linear)
        is_layer = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        return is_layer and re.search(pattern, name) is not None

    names = [re.escape(name) for name, module in vision_encoder.model.named_modules() if fits(name, module)]
    if not names:
        which = "linear layers" if pattern is None else f"layers in whose name {pattern!r} is found"
        raise InputError(f"`lora` needs {which} in the vision model, got none")
    adapted = get_peft_model(
        vision_encoder.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="|".join(names))
    )
    vision_encoder.train(vision_encoder.training)  # takes adapters of layers that no gradient reaches out of training
    return adapted
