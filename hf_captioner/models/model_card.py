"""The card of a captioner, as far as its configuration tells: what it is and how to use it."""

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig

_TEXT = """
# {title}

An image captioner: {system}, on the regions that a {vision} model sees. Its code, in this
repository, is that of hf_captioner.

## Use

```python
from transformers import pipeline

captioner = pipeline("image-captioning", model="{name}", trust_remote_code=True)
captioner("photo.jpg", num_beams=3)  # or a URL, a PIL image, a list of them
```

gives `generated_text`, `score` (the geometric mean of the tokens' probabilities) and `tokens` with a probability each;
with `attention=True`, where it looked at each of them. Model and processor alone: `AutoModelForImageTextToText` and
`AutoProcessor`.
"""


def describe(config: PreTrainedConfig) -> str:
    """A captioner's decoder in words."""
    if config.model_type == "transformer_captioner":
        return (
            f"a Transformer with {config.encoder_layers} encoder layers and {config.decoder_layers} decoder layers of "
            f"width {config.hidden_size} and {config.num_attention_heads} heads"
        )
    attention = f"{config.attention_sampling} {config.attention.replace('_', '-')} attention"
    return (
        f"an RNN ({config.cell.upper()}, layers: {config.num_layers}, width {config.hidden_size}) "
        f"{'without attention' if config.attention == 'none' else 'with ' + attention}"
    )


def model_card(config: PreTrainedConfig, name: str) -> ModelCard:
    """
    Args:
        config: of the captioner.
        name: by which the card tells to load it, a folder or a Hub repository.

    Returns:
        a `huggingface_hub.ModelCard`, metadata included.
    """
    data = ModelCardData(
        library_name="transformers", pipeline_tag="image-to-text", tags=["image-captioning", config.model_type]
    )
    text = _TEXT.format(
        title=name.split("/")[-1], system=describe(config), vision=config.vision_config.model_type, name=name
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


__all__ = ["describe", "model_card"]
