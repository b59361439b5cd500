"""
Loads captioners from the Hub of the environment in every way and writes down what they are and say:
`hub_load.py FOLDER TRUST NAME ...`. It imports nothing of this project.
"""

import importlib.util
import json
import logging
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import is_torchvision_available

ERRORS = {
    "revision": dict(pretrained_model_name_or_path="user/additive", revision="nowhere"),
    "repository": dict(pretrained_model_name_or_path="user/nothing"),
    "private": dict(pretrained_model_name_or_path="user/private", token=False),
    "code": dict(pretrained_model_name_or_path="user/no-attention"),
    "weights": dict(pretrained_model_name_or_path="user/no-weights"),
    "shape": dict(pretrained_model_name_or_path="user/other-shape"),
}
OLD_WITHOUT_TORCHVISION = transformers.__version__.startswith("5.17.") and not is_torchvision_available()


def realigned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values where torch puts a new tensor and not where the file has them: sums differ in the last bit."""
    return tensor.clone()


def read(name: str, inputs: dict, trust: bool, folder: Path) -> tuple[dict, dict]:
    options = dict(trust_remote_code=trust)
    models = {
        auto.__name__: auto.from_pretrained(name, **options) for auto in (AutoModel, AutoModelForImageTextToText)
    }
    parts = {
        auto.__name__: auto.from_pretrained(name, **options) for auto in (AutoConfig, AutoProcessor, AutoTokenizer)
    }
    if not OLD_WITHOUT_TORCHVISION:
        parts["AutoImageProcessor"] = AutoImageProcessor.from_pretrained(name, **options)
    processor = parts["AutoProcessor"]
    captioner = pipeline("image-captioning", model=name, device="cpu", **options)
    image = Image.new("RGB", (50, 40), (200, 20, 30))
    (caption,) = captioner(image)
    general = pipeline("image-text-to-text", model=name, device="cpu", **options)
    # What it warns of in 5.17 is its own.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    text = general(image, text="")[0]["generated_text"]
    asked = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    answered = general([{"role": "user", "content": asked}])[0]["generated_text"][-1]["content"]
    logging.getLogger("transformers").setLevel(logging.WARNING)
    found = {
        "modules": {key: type(part).__module__ for key, part in {**models, **parts, "pipeline": captioner}.items()},
        "classes": {key: type(part).__name__ for key, part in {**models, **parts, "pipeline": captioner}.items()},
        "caption": caption,
        "general": text,
        "chat": answered,
        "labels": processor(text_target=["one z"])["labels"],
    }
    tensors = {}
    model = models["AutoModel"]
    model.save_pretrained(folder / name)
    processor.save_pretrained(folder / name)
    models["saved again"] = AutoModelForImageTextToText.from_pretrained(folder / name, **options)
    AutoProcessor.from_pretrained(folder / name, **options)
    for key, model in models.items():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = realigned(tensor.data)
        with torch.no_grad():
            tensors[f"{key}.logits"] = model.eval()(**inputs).logits
            tensors[f"{key}.beams"] = model.generate(inputs["pixel_values"], num_beams=3).contiguous()
    return found, {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def main(folder: Path, trust: bool, names: list[str]) -> None:
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    inputs = load_file(folder.parent / "expected.safetensors")
    inputs = {name: realigned(inputs[name]) for name in ("pixel_values", "decoder_input_ids")}
    errors = {}
    for kind, options in ERRORS.items():
        try:
            AutoModel.from_pretrained(**options, trust_remote_code=trust)
        except Exception as error:
            errors[kind] = "\n".join([*warnings, f"{type(error).__name__}: {error}"])
        warnings.clear()
    found, tensors = {}, {}
    for name in names:
        found[name], logits = read(f"user/{name}", inputs, trust, folder)
        tensors |= logits
    changed = AutoModel.from_pretrained("user/additive", revision="changed", trust_remote_code=trust).eval()
    for tensor in (*changed.parameters(), *changed.buffers()):
        tensor.data = realigned(tensor.data)
    with torch.no_grad():
        tensors["changed.logits"] = changed(**inputs).logits
    AutoModel.from_pretrained("user/private", trust_remote_code=trust)
    found["warnings"] = list(warnings)
    found["importable"] = importlib.util.find_spec("hf_captioner") is not None
    found["errors"] = errors
    (folder / "found.json").write_text(json.dumps(found))
    save_file(tensors, folder / "found.safetensors")


if __name__ == "__main__":
    if sys.argv[2] == "installed":
        import hf_captioner  # noqa: F401
    main(Path(sys.argv[1]), sys.argv[2] == "alone", sys.argv[3:])
