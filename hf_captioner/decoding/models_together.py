"""Several captioners that speak together."""

from collections.abc import Sequence

from ..compat import DecodingSteps
from ..errors import InputError
from .beams import search


def ensemble(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    members: Sequence = (),
    member_pixel_values=None,
    **model_kwargs,
):
    """
    Beam search by the mean of several captioners' probabilities for the next word. They need one vocabulary, and may
    be of different families and see different regions. Alone, a captioner does its own beam search.

        first.generate(pixel_values, custom_generate=ensemble, members=[second, third],
                       member_pixel_values=pixel_values, num_beams=5)

    Args:
        members: the other captioners.
        member_pixel_values: images (B, 3, H, W) for them, or a list with those of each.

    Returns:
        as `generate()`; `sequences_scores` are the mean's log probabilities, divided by the length to the power of
        `length_penalty`.

    Raises:
        InputError: if a member has another number of tokens, or there are no images for it.

    Examples:
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.decoding import ensemble
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> configs = [RnnCaptionerConfig(vision_config=vision, vocab_size=40, cell=cell) for cell in ("lstm", "gru")]
        >>> lstm, gru = (RnnCaptionerForConditionalGeneration(config).eval() for config in configs)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> options = dict(members=[gru], member_pixel_values=images, num_beams=3, min_new_tokens=5, max_new_tokens=5)
        >>> lstm.generate(images, custom_generate=ensemble, **options).shape  # start and five tokens, of each image
        torch.Size([2, 6])
    """
    steps = [DecodingSteps(model, generation_config, model_kwargs)]
    images = member_pixel_values if isinstance(member_pixel_values, list) else [member_pixel_values] * len(members)
    if len(images) != len(members) or any(pixels is None for pixels in images):
        raise InputError(f"`member_pixel_values` must be there for each of {len(members)} members")
    for member, pixels in zip(members, images, strict=True):
        if member.config.vocab_size != model.config.vocab_size:
            raise InputError(
                f"`members` must have the vocabulary of the model ({model.config.vocab_size} tokens), "
                f"got {member.config.vocab_size}"
            )
        own = {name: model_kwargs[name] for name in ("decoder_attention_mask",) if name in model_kwargs}
        own["encoder_outputs"] = member.get_encoder()(pixel_values=pixels)
        steps.append(DecodingSteps(member, generation_config, own))
    return search(steps, input_ids, logits_processor, stopping_criteria, generation_config)
