"""
What `models/compat.py` stands in for: one test per private name of transformers, which fails first when a new version
changes it. And by their syntax: private names are touched in that file alone, and no two models have a forward alike.
"""

import ast
import inspect

import pytest
import torch
from testing import ROOT
from testing.tiny_models import SYSTEMS, random_images, tiny_model, tiny_vision, tiny_vit
from transformers import AutoModel, GenerationMixin, PreTrainedConfig, PreTrainedModel

from hf_captioner.models.compat import RowsPerImageGenerationMixin, use_eager_attention, with_eager_masks

MODELS = sorted((ROOT / "hf_captioner" / "models").glob("*.py"))
# Private by their names, but what transformers' documentation tells every model to set, override or read.
EXTENSION_POINTS = {
    "_attn_implementation",
    "_auto_class",
    "_can_compile_fullgraph",
    "_defaults",
    "_from_config",
    "_gradient_checkpointing_func",
    "_init_weights",
    "_is_hf_initialized",
    "_is_stateful",
    "_load_feature_extractor",
    "_load_image_processor",
    "_load_processor",
    "_load_tokenizer",
    "_merge_kwargs",
    "_no_split_modules",
    "_skip_keys_device_placement",
    "_supports_attention_backend",
    "_supports_default_dynamic_cache",
    "_supports_flash_attn",
    "_supports_sdpa",
    "_tied_weights_keys",
    "_forward",  # of a pipeline, as are the next
    "_sanitize_parameters",
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names() -> set[str]:
    """Private names that this folder itself defines."""
    found = set()
    for path in MODELS:
        if path.name == "compat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if isinstance(node.value, ast.Name) and node.value.id == "self":
                    found.add(node.attr)
    return {name for name in found if is_private(name)}


def of_transformers() -> set[str]:
    """Private names that a model, a configuration or a generating model has from transformers."""
    return {name for cls in (PreTrainedModel, PreTrainedConfig, GenerationMixin) for name in dir(cls)}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_private_names_of_transformers_are_touched_in_one_file(path):
    if path.name == "compat.py":
        return
    mine, theirs = own_names(), of_transformers()
    for node in ast.walk(ast.parse(path.read_text())):
        touched = []
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in mine:
            touched = [node.attr]
        elif isinstance(node, ast.ClassDef):  # overrides
            touched = [part.name for part in node.body if isinstance(part, ast.FunctionDef) and part.name in theirs]
        for name in touched:
            if is_private(name):
                assert name in EXTENSION_POINTS, f"{path.name}:{node.lineno}: {name} belongs in compat.py"


def test_no_two_forwards_of_models_are_alike():
    """Families share one template: no class of theirs that holds an encoder or a head has a forward of its own."""
    forwards = {}
    for path in MODELS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("CaptionerModel", "ForConditionalGeneration")):
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and part.name == "forward":
                        forwards[node.name] = ast.dump(part)
    assert set(forwards) == {"CaptionerModel", "CaptionerForConditionalGeneration"}
    assert len(set(forwards.values())) == len(forwards)


@pytest.mark.parametrize(
    "name,parameters",
    {
        "_expand_inputs_for_generation": ["expand_size", "is_encoder_decoder", "input_ids", "model_kwargs"],
        "_validate_model_kwargs": ["model_kwargs"],
        "_prefill": ["input_ids", "generation_config", "model_kwargs", "is_first_iteration"],
    }.items(),
)
def test_hooks_of_generation(name, parameters):
    """`generate()` calls it by this name, with these parameters."""
    found = [parameter for parameter in inspect.signature(getattr(GenerationMixin, name)).parameters]
    assert [parameter for parameter in found if parameter != "self"] == parameters
    assert f"self.{name}(" in inspect.getsource(GenerationMixin)


def test_a_configuration_chooses_eager_attention():
    config = tiny_vit()
    use_eager_attention(config)
    assert AutoModel.from_config(config).config._attn_implementation == "eager"


def test_masks_for_eager_attention_leave_the_vision_model_alone():
    model = tiny_model(**SYSTEMS["vit_transformer"])
    model.set_attn_implementation("sdpa")
    changed = with_eager_masks(model.config)
    assert changed._attn_implementation == "eager"
    assert model.config._attn_implementation == model.config.vision_config._attn_implementation == "sdpa"


def test_the_prompt_hook_is_used():
    """Beams read the prompt once per image: of two images with three beams each, the first call has two rows."""
    model, rows = tiny_model(vision_config=tiny_vision()), []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    model.generate(random_images(2), num_beams=3, max_new_tokens=2, decoder_input_ids=torch.full((2, 2), 2))
    assert rows == [2, 6]


@pytest.mark.parametrize("name", sorted(SYSTEMS))
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
def test_what_a_step_takes_is_what_transformers_would_hand_it(name, beams, use_cache, monkeypatch):
    model, steps = tiny_model(**SYSTEMS[name]), []
    ours = RowsPerImageGenerationMixin.prepare_inputs_for_generation

    def both(self, *args, **kwargs):
        made = ours(self, *args, **kwargs)
        theirs = GenerationMixin.prepare_inputs_for_generation(self, *args, **kwargs)
        assert list(made) and set(made) == set(theirs)
        for key, value in made.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[key]) and value.stride() == theirs[key].stride()
            else:
                assert value is theirs[key]
        steps.append(made["decoder_input_ids"].shape[1])
        return made

    monkeypatch.setattr(RowsPerImageGenerationMixin, "prepare_inputs_for_generation", both)
    prompt = torch.tensor([[2, 5, 4], [2, 7, 4]])
    model.generate(
        random_images(2),
        decoder_input_ids=prompt,
        decoder_attention_mask=torch.ones_like(prompt),
        num_beams=beams,
        max_new_tokens=3,
        min_new_tokens=3,
        use_cache=use_cache,
    )
    assert steps == ([3, 1, 1] if use_cache else [3, 4, 5])
