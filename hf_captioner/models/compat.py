"""
Everything in this folder that touches transformers' private names, in one place: when a new version of transformers
breaks something, it is most likely here. `tests/models/test_model_hooks.py` has one test per entry, which fails first.

Tried with transformers 5.17.0 and 5.23.0.
"""

import copy
import inspect
from typing import Any

import torch
from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel

from .attention import rows_per_image

# So many weights may be missing whatever the rest is: a new output layer for a small captioner's words, say.
_FEW = 2**24


def use_eager_attention(config: PreTrainedConfig) -> None:
    """Makes models that are built from `config` use eager attention, the only implementation that all of them have."""
    config._attn_implementation = "eager"


def with_eager_masks(config: PreTrainedConfig) -> PreTrainedConfig:
    """
    A copy of `config` for which transformers' mask functions make masks in the format of eager attention. The private
    attribute is set because the public setter would change the vision model's configuration as well.
    """
    config = copy.copy(config)
    config._attn_implementation_internal = "eager"
    return config


def asked_dtype(model: PreTrainedModel) -> "str | torch.dtype | None":
    """
    The `dtype` that a model was loaded with: `pipeline(..., dtype=...)` hands it to `from_pretrained` and to nobody
    else. A model that was not loaded was made with the type that it has.
    """
    return getattr(model, "_asked_dtype", model.dtype)


def check_stored(config: PreTrainedConfig, stored: int) -> None:
    """
    Refuses before hundreds of layers are built what [`WholeWeightsMixin`] refuses when they are: a layer has more
    numbers than its width squared, and a byte holds two numbers at most.

    Args:
        config: of a captioner.
        stored: bytes that the files of its weights have.

    Raises:
        ValueError: if they can't be half of what the configuration describes.
    """
    layers = getattr(config, "num_hidden_layers", 0)  # a family from outside need not have them
    least = layers * config.hidden_size**2
    if least - 2 * stored > max(2 * stored, _FEW):
        raise ValueError(
            f"the weights must be those that the configuration describes, got {stored:,} bytes for "
            f"{layers} layers of width {config.hidden_size}"
        )


class WholeWeightsMixin(PreTrainedModel):
    """
    A `PreTrainedModel` that refuses a folder whose configuration describes far more weights than it has, before memory
    is taken for those that are missing. By way of a private method of `PreTrainedModel`, which makes them.
    It remembers the `dtype` that it was loaded with, for [`asked_dtype`].
    """

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        model._asked_dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        return loaded

    def _move_missing_keys_from_meta_to_device(self, missing_keys, *args, **kwargs):
        everything = self.state_dict()
        # In the model's order, so that of several equally large ones always the same is named.
        sizes = {name: tensor.numel() for name, tensor in everything.items() if name in missing_keys}
        missing = sum(sizes.values())
        present = sum(tensor.numel() for tensor in everything.values()) - missing
        if missing > max(present, _FEW):
            largest = max(sizes, key=sizes.__getitem__)
            raise ValueError(
                f"the weights must be those that the configuration describes, got {present:,} numbers of "
                f"{present + missing:,}; `{largest}` of shape {tuple(everything[largest].shape)} is missing"
            )
        return super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)


def _are_copies(rows: torch.Tensor, copies: int) -> bool:
    """Whether each group of `copies` consecutive rows is identical."""
    groups = rows.unflatten(0, (-1, copies))
    return bool((groups == groups[:, :1]).all())


class RowsPerImageGenerationMixin(GenerationMixin):
    """
    `generate()` with several rows per image, by way of three private methods of `GenerationMixin`: the encoder's
    output is not repeated for beams and samples, and the prompt that they share is read once per image.
    """

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, encoder_outputs=None, **model_kwargs
    ):
        # Beams and samples become additional rows of their image. The encoder's output is not repeated for them.
        # By keyword: in 5.17 this is a static method.
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        model_kwargs["encoder_outputs"] = encoder_outputs
        return input_ids, model_kwargs

    def _validate_model_kwargs(self, model_kwargs):
        # `forward` passes further keyword arguments on to the base model, so its parameters are valid, too.
        known = {*inspect.signature(self.model.forward).parameters, *self.model.decoder_options}
        super()._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in known})

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        # transformers' own asks for the signature of `forward` at every word, which takes longer than some of its
        # layers for one image. It is left what is more than to pass on what there is: masks for a cache that was made
        # at its full length, and a move to another device.
        is_static = getattr(past_key_values, "is_compileable", False)
        encoder_outputs = kwargs.get("encoder_outputs")
        if is_static or encoder_outputs is None or encoder_outputs[0].device != input_ids.device:
            return super().prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=next_sequence_length,
                past_key_values=past_key_values,
                attention_mask=attention_mask,
                **kwargs,
            )
        new = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        given = {"past_key_values": past_key_values, "attention_mask": attention_mask}
        given["decoder_attention_mask"] = kwargs.pop("decoder_attention_mask", None)
        not_passed_on = {"labels", "inputs_embeds", "is_first_iteration"}
        return {
            "decoder_input_ids": new.clone(memory_format=torch.contiguous_format),
            **{name: value for name, value in given.items() if value is not None},
            **{name: value for name, value in kwargs.items() if name not in not_passed_on},
        }

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        encoder_outputs, cache = model_kwargs["encoder_outputs"], model_kwargs.get("past_key_values")
        is_static = getattr(cache, "is_compileable", False)  # it is made for all rows at once
        if cache is not None and not is_static and 0 < cache.get_seq_length() < input_ids.shape[1]:
            # A caption is continued with the cache of its beginning. transformers leaves out the tokens that the cache
            # has only if a mask tells it that these are all of them.
            if model_kwargs.get("decoder_attention_mask") is None:
                model_kwargs = {**model_kwargs, "decoder_attention_mask": torch.ones_like(input_ids)}
        # All beams and samples of an image start with the same prompt, so the prompt is processed once per image and
        # the results (cache, logits) are repeated.
        copies = rows_per_image(len(input_ids), len(encoder_outputs[0]))
        is_fresh = cache is None or not (is_static or cache.get_seq_length())
        # In training every row has its own dropout, and `sample_regions` draws regions for every row.
        is_random = self.training or model_kwargs.get("sample_regions")
        if copies == 1 or is_random or not (is_fresh and _are_copies(input_ids, copies)):
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        mask = model_kwargs.get("decoder_attention_mask")
        if mask is not None:
            model_kwargs = {**model_kwargs, "decoder_attention_mask": mask[::copies]}
        outputs = super()._prefill(input_ids[::copies], generation_config, model_kwargs, *args, **kwargs)
        if outputs.past_key_values is not None:
            outputs.past_key_values.batch_repeat_interleave(copies)
        outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
        for name in ("decoder_hidden_states", "decoder_attentions", "cross_attentions"):
            if getattr(outputs, name) is not None:
                outputs[name] = tuple(tensor.repeat_interleave(copies, dim=0) for tensor in outputs[name])
        return outputs
