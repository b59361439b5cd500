"""A captioner as two ONNX graphs: what is computed once per image, and one word of every row."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import InputError
from ..files import replacing
from ..models.processing_captioner import CaptionerProcessor
from ..models.recurrent_cache import RecurrentCache
from .int8 import quantize_filters, quantize_products
from .onnx_captioner import DECODER, ENCODER, SUFFIXES, SearchSettings

# Of a generation configuration, what says nothing about the search.
_NAMES = {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "max_length",
}

_IMAGE_STEPS = {"do_convert_rgb", "do_resize", "do_rescale", "do_normalize"}

FREE = torch.export.Dim.DYNAMIC  # a dimension of another size whenever the graph runs


def check_generation(settings: GenerationConfig) -> None:
    """
    Raises:
        InputError: if they ask for something that [`OnnxCaptioner`] cannot do.
    """
    if settings.max_new_tokens is None:
        raise InputError("`max_new_tokens` must be in the generation settings of a captioner to be exported, got None")
    known = {field.name for field in fields(SearchSettings)} | _NAMES
    for name, value in settings.to_diff_dict().items():
        if value and name not in known and not name.startswith("_"):
            raise InputError(
                f"`{name}` must be left out of the generation settings of a captioner to be exported, got {value!r}"
            )


def check_images(processor: CaptionerProcessor) -> None:
    """
    Raises:
        InputError: if images are prepared in a way that [`OnnxCaptioner`] does not know.
    """
    settings = processor.image_processor.to_dict()
    for name, value in settings.items():
        if name.startswith("do_") and value and name not in _IMAGE_STEPS:
            raise InputError(
                f"`{name}` must be off in the image processor of a captioner to be exported, got {value!r}"
            )
    if not {"height", "width"} <= set(settings["size"]):
        raise InputError(f"`size` of the image processor must have a height and a width, got {settings['size']}")


def read_state(cache: Cache) -> list[torch.Tensor]:
    """What a cache holds of N rows, as a list of tensors (N, ...) that [`write_state`] takes."""
    if isinstance(cache, RecurrentCache):
        return [tensor for layer in cache.layers for tensor in layer.state]
    return [tensor for layer in cache.self_attention_cache.layers for tensor in (layer.keys, layer.values)]


def write_state(cache: Cache, tensors: list[torch.Tensor]) -> None:
    """Fills an empty cache."""
    if isinstance(cache, RecurrentCache):
        states = len(tensors) // len(cache.layers)
        for place, layer in enumerate(cache.layers):
            layer.update(tuple(tensors[place * states : (place + 1) * states]))
    else:
        for layer in range(len(tensors) // 2):
            cache.self_attention_cache.update(tensors[2 * layer], tensors[2 * layer + 1], layer)


class EncoderGraph(nn.Module):
    """
    pixel_values (B, 3, H, W) -> by name: what the decoder reads of an image (B, ...), `state.*`, where it begins
    (B, 1, ...), `grid` (2,), rows and columns of the regions, and, if the captioner has statistics of known images,
    `familiarity` (B,).
    """

    def __init__(self, captioner: PreTrainedModel):
        super().__init__()
        self.captioner = captioner

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        model = self.captioner.model
        encoded = model.encoder(pixel_values=pixel_values)
        images = pixel_values.shape[0]  # len() would make it a constant of the graph
        if isinstance(model.make_cache(), RecurrentCache):
            states = [tensor for layer in model.decoder.initial_states(encoded, 1) for tensor in layer]
        else:
            config = self.captioner.config
            heads = config.num_attention_heads
            empty = pixel_values.new_zeros((images, heads, 0, config.hidden_size // heads))
            states = [empty] * (2 * config.decoder_layers)
        outputs = image_side(encoded)
        outputs |= {f"state.{place}": tensor[:, None] for place, tensor in enumerate(states)}
        outputs["grid"] = torch.tensor(encoded.grid)
        if self.captioner.familiarity is not None:
            outputs["familiarity"] = self.captioner.familiarity(encoded.last_hidden_state)
        return outputs


def image_side(encoded: ModelOutput) -> dict[str, torch.Tensor]:
    """By name what the decoder reads of an image at every word."""
    found = {}
    for name in ("projected_keys", "projected_values"):
        value = encoded.get(name)
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif value is not None:
            found |= {f"{name}.{layer}": tensor for layer, tensor in enumerate(value)}
    return found


class DecoderGraph(nn.Module):
    """
    input_ids (B, k), the last token of k rows for each of B images, `image` as [`image_side`], `state`, tensors
    (B, k, ...) -> `logits` (B, k, vocabulary), the new state and, if the captioner attends, `attention` (B, k, L), the
    last layer's weights, averaged over heads.

    Args:
        captioner: the model.
        encoded: an example of what its encoder returns.
    """

    def __init__(self, captioner: PreTrainedModel, encoded: ModelOutput):
        super().__init__()
        self.captioner = captioner
        self.output_class = type(encoded)
        self.by_layer = isinstance(encoded.get("projected_keys"), tuple)

    def forward(
        self, input_ids: torch.Tensor, image: dict[str, torch.Tensor], state: list[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        model = self.captioner.model
        cache = model.make_cache()
        write_state(cache, [tensor.flatten(0, 1) for tensor in state])
        parts: dict = dict(image)
        if self.by_layer:
            layers = range(len(image) // 2)
            parts = {
                name: tuple(image[f"{name}.{layer}"] for layer in layers)
                for name in ("projected_keys", "projected_values")
            }
        # Of the regions themselves the decoder only asks how many images there are.
        encoded = self.output_class(last_hidden_state=input_ids, **parts)
        outputs = model.decoder(
            input_ids.flatten()[:, None],
            encoded,
            past_key_values=cache,
            output_attentions=self.captioner.config.attends,
        )
        found = {"logits": self.captioner.lm_head(outputs.last_hidden_state[:, -1])}
        if outputs.cross_attentions is not None:
            found["attention"] = outputs.cross_attentions[-1].mean(1)[:, -1]
        found |= {f"new_state.{place}": tensor for place, tensor in enumerate(read_state(cache))}
        return {name: tensor.unflatten(0, input_ids.shape) for name, tensor in found.items()}


def export_onnx(
    captioner: PreTrainedModel, processor: CaptionerProcessor, folder: str | Path, int8: bool = False
) -> Path:
    """
    Writes a captioner for [`OnnxCaptioner`]: `onnx/encoder_model.onnx` and `onnx/decoder_model.onnx` (one word of all
    rows, with the RNN's state or the self-attention's cache), configuration, generation settings, tokenizer and the
    preprocessing of images. The number of images, rows and words is free, the size of an image is the processor's.

    Args:
        captioner: left unchanged; its copy in single precision is written.
        processor: the captioner's.
        folder: made if it does not exist. In the captioner's own folder, only `onnx/` is written.
        int8: whether weights are 8-bit numbers, see [`quantize_filters`] and [`quantize_products`]; the files then end
            in `_quantized.onnx`.

    Returns:
        the folder.

    Raises:
        InputError: if the generation settings or the image processor have something that an exported captioner cannot
            do, or the folder is another captioner's.
    """
    folder = Path(folder)
    check_generation(captioner.generation_config)
    check_images(processor)
    own = (folder / "config.json").exists() and folder.resolve() == Path(captioner.name_or_path).resolve()
    if not own and any(folder.glob("*.safetensors")):
        raise InputError(f"`output` must be a new folder or the captioner's own, got another captioner's: {folder}")
    captioner = copy.deepcopy(captioner).to("cpu", torch.float32).eval()
    graphs = folder / "onnx"
    graphs.mkdir(parents=True, exist_ok=True)
    size = processor.image_processor.size
    images, rows, past = 2, 3, 2  # not 0 or 1, which torch takes for constants
    pixels = torch.zeros(images, captioner.vision_encoder.num_channels, size["height"], size["width"])
    encoder = EncoderGraph(captioner)
    with torch.no_grad():
        encoded = captioner.model.encoder(pixel_values=pixels)
        outputs = encoder(pixels)
    write_graph(
        encoder,
        {"pixel_values": pixels},
        {"pixel_values": {0: FREE}},
        list(outputs),
        graphs / ENCODER,
        quantize_filters if int8 else None,
    )

    image = image_side(encoded)
    starts = [tensor for name, tensor in outputs.items() if name.startswith("state.")]
    state, shapes = [], []
    for tensor in starts:
        tensor, shape = tensor.repeat_interleave(rows, 1), {0: FREE, 1: FREE}
        if tensor.ndim == 5:  # (B, k, heads, words, d)
            tensor = tensor.new_zeros((*tensor.shape[:3], past, tensor.shape[-1]))
            shape[3] = FREE
        state.append(tensor)
        shapes.append(shape)
    inputs = {"input_ids": torch.zeros(images, rows, dtype=torch.long), "image": image, "state": state}
    free = {
        "input_ids": {0: FREE, 1: FREE},
        "image": {name: {0: FREE} for name in image},
        "state": shapes,
    }
    decoder = DecoderGraph(captioner, encoded)
    with torch.no_grad():
        names = list(decoder(**inputs))
    write_graph(decoder, inputs, free, names, graphs / DECODER, quantize_products if int8 else None)

    if not own:
        processor.save_pretrained(folder)
        config = copy.deepcopy(captioner.config)
        for name in ("auto_map", "custom_pipelines"):  # there is no code beside it
            config.__dict__.pop(name, None)
        config.to_json_file(folder / "config.json")
        captioner.generation_config.save_pretrained(folder)
    return folder


def write_graph(
    module: nn.Module,
    inputs: dict,
    free: dict,
    outputs: list[str],
    path: Path,
    quantize: Callable[[Path, Path], None] | None = None,
) -> None:
    """
    Args:
        module: what is written.
        inputs: example arguments by name; those in a dictionary or a list become inputs of their own, with the names
            of the dictionary, or that of the list and a number.
        free: which dimensions may have another size, of the same structure.
        outputs: names of what the module returns, in order.
        path: the file, without its ending.
        quantize: what makes 8-bit numbers of the weights in a file and writes another.
    """
    names: list[str] = []
    for name, value in inputs.items():
        if isinstance(value, dict):
            names += value
        elif isinstance(value, list):
            names += [f"{name}.{place}" for place in range(len(value))]
        else:
            names.append(name)
    # With gradients, alignments take the way that has no loop over the rows, whose number is free here.
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        traced = torch.export.export(module.eval(), (), inputs, dynamic_shapes=free)
        program = torch.onnx.export(traced, input_names=names, output_names=outputs, verbose=False)
    assert program is not None
    with replacing(path.with_name(path.name + SUFFIXES[quantize is not None])) as part:
        if quantize is None:
            program.save(part, external_data=False)
            return
        with TemporaryDirectory() as temporary:
            precise = Path(temporary, "model.onnx")
            program.save(precise, external_data=False)
            quantize(precise, part)
