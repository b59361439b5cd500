"""Every vision model type gives regions, trains and generates, with no parameter left without a gradient."""

import copy
import re

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from testing.tiny_models import SYSTEMS, random_images, random_labels, tiny_config, tiny_model, tiny_vision
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    EfficientNetConfig,
    HGNetV2Config,
    MobileNetV1Config,
    MobileNetV2Config,
    MobileNetV2Model,
    RegNetConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)

from hf_captioner import CaptionerImageProcessor, RnnCaptionerForConditionalGeneration
from hf_captioner.models.vision_encoder import VisionEncoder

SIDE = 64
_TINY_VIT = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, image_size=SIDE, patch_size=16
)
_TINY_DINO = {**{name: _TINY_VIT[name] for name in _TINY_VIT if name != "intermediate_size"}, "mlp_ratio": 2}
# type -> (configuration, grid of a 64 x 64 image, tokens in front)
VISION = {
    "resnet": (tiny_vision(), (8, 8), 0),
    "regnet": (RegNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, groups_width=4), (2, 2), 0),
    "convnext": (ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1] * 4, image_size=SIDE), (2, 2), 0),
    "mobilenet_v1": (MobileNetV1Config(image_size=SIDE, depth_multiplier=0.25, min_depth=4), (2, 2), 0),
    "mobilenet_v2": (
        MobileNetV2Config(image_size=SIDE, depth_multiplier=0.25, min_depth=4, finegrained_output=False),
        (2, 2),
        0,
    ),
    "efficientnet": (
        EfficientNetConfig(image_size=SIDE, width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=320),
        (2, 2),
        0,
    ),
    "vit": (ViTConfig(**_TINY_VIT), (4, 4), 1),
    "deit": (DeiTConfig(**_TINY_VIT), (4, 4), 2),
    "swin": (
        SwinConfig(image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
        (8, 8),
        0,
    ),
    "dinov2": (Dinov2Config(**_TINY_DINO), (4, 4), 1),
    "dinov2_with_registers": (Dinov2WithRegistersConfig(**_TINY_DINO, num_register_tokens=4), (4, 4), 5),
    "clip": (CLIPVisionConfig(**_TINY_VIT), (4, 4), 1),
    "siglip": (SiglipVisionConfig(**_TINY_VIT), (4, 4), 0),
}


@pytest.mark.parametrize("name", VISION)
def test_regions_are_the_patches_row_by_row(name):
    config, grid, prefix = VISION[name]
    torch.manual_seed(0)
    encoder = VisionEncoder(config).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    regions, found = encoder(pixels)
    assert found == grid and regions.shape == (2, grid[0] * grid[1], encoder.width)
    raw = encoder.model(pixel_values=pixels).last_hidden_state
    expected = raw[:, prefix:] if raw.ndim == 3 else raw.permute(0, 2, 3, 1).reshape(2, -1, raw.shape[1])
    torch.testing.assert_close(regions, expected)


@pytest.mark.parametrize("name", VISION)
def test_prefix_tokens_can_be_kept(name):
    config, grid, prefix = VISION[name]
    if not prefix:
        with pytest.raises(ValueError, match="`keep_prefix_tokens` must be false for a `vision_config` of type"):
            VisionEncoder(config, keep_prefix_tokens=True)
        return
    torch.manual_seed(0)
    encoder = VisionEncoder(config, keep_prefix_tokens=True).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    regions, found = encoder(pixels)
    assert found == grid and encoder.num_prefix_regions == prefix
    torch.testing.assert_close(regions, encoder.model(pixel_values=pixels).last_hidden_state)


@pytest.mark.parametrize("system", ["none", "additive", "hard_multi_head", "cnn_transformer", "vit_transformer"])
def test_a_captioner_that_keeps_prefix_tokens(system, tmp_path):
    model = tiny_model(**{**SYSTEMS[system], "vision_config": VISION["deit"][0], "keep_prefix_tokens": True})
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    features, grid = model.vision_encoder(pixels)
    options = dict(max_new_tokens=3, output_attentions=True, return_dict_in_generate=True)
    from_pixels = model.generate(pixels, **options)
    for place in ({"grid": grid}, {}):
        from_features = model.generate(image_features=features, **place, **options)
        assert torch.equal(from_features.sequences, from_pixels.sequences)
    with pytest.raises(ValueError, match="`grid` must have 16 cells"):
        model.generate(image_features=features, grid=(2, 9), **options)
    if model.config.attends:
        maps = model.attention_maps(from_pixels)
        weights = from_pixels.cross_attentions[0][-1][:, :, -1].mean(1)
        assert maps.shape[2:] == grid and weights.shape[1] == 2 + 16
        torch.testing.assert_close(maps[:, 0].flatten(1), weights[:, 2:])
    # What the tokens say has an effect.
    changed = features.clone()
    changed[:, :2] += 1
    logits = [
        model(image_features=regions, decoder_input_ids=torch.tensor([[2, 5, 6]] * 2)).logits
        for regions in (features, changed)
    ]
    assert not torch.allclose(*logits)


def test_prefix_tokens_have_no_position():
    settings = {**SYSTEMS["cnn_transformer"], "vision_config": VISION["deit"][0]}
    kept = tiny_model(**settings, keep_prefix_tokens=True).get_encoder()
    zeros, patches = torch.zeros(1, 18, 16), tiny_model(**settings).get_encoder()
    assert not kept._add_positions(zeros, (4, 4))[:, :2].any()
    for grid in ((4, 4), (2, 8)):
        expected = patches._add_positions(zeros[:, 2:], grid)
        torch.testing.assert_close(kept._add_positions(zeros, grid)[:, 2:], expected)


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("system", ["none", "multi_head", "cnn_transformer", "vit_transformer"])
def test_trains_a_step_and_generates(name, system):
    model = tiny_model(**{**SYSTEMS[system], "vision_config": VISION[name][0]})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    model(pixel_values=torch.randn(3, 3, SIDE, SIDE), labels=random_labels()).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    optimizer.step()
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert any("vision_encoder" in n for n in changed)
    model.eval()
    assert model.generate(torch.randn(2, 3, SIDE, SIDE), num_beams=3, max_new_tokens=4).shape[0] == 2


def test_unused_parameters_are_frozen_and_stay_so():
    model = RnnCaptionerForConditionalGeneration(tiny_config(vision_config=VISION["vit"][0]))
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all("pooler" in n for n in frozen)
    model.freeze_vision()
    assert not any(p.requires_grad for p in model.vision_encoder.parameters())
    model.unfreeze_vision()
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen


def test_a_frozen_cnn_keeps_its_batch_statistics():
    model = RnnCaptionerForConditionalGeneration(tiny_config()).train()

    def train_once():
        before = {n: b.clone() for n, b in model.vision_encoder.named_buffers()}
        model.train()
        model(pixel_values=torch.randn(3, 3, 32, 32), labels=random_labels()).loss.backward()
        return all(torch.equal(b, before[n]) for n, b in model.vision_encoder.named_buffers())

    assert not train_once()
    model.zero_grad()
    model.freeze_vision()
    assert train_once()
    assert all(p.grad is None for p in model.vision_encoder.parameters())
    assert model.training and model.model.decoder.training
    model.unfreeze_vision()
    assert not train_once()


@pytest.mark.parametrize("name", ["resnet", "efficientnet", "vit"])
def test_a_part_of_the_vision_model_learns_and_nothing_else_moves(name):
    config = VISION[name][0]
    model = RnnCaptionerForConditionalGeneration(tiny_config(vision_config=config))
    pattern = {"resnet": r"stages\.1\.", "efficientnet": r"blocks\.6\.", "vit": r"layers?\.1\."}[name]
    model.unfreeze_vision(pattern)
    vision = model.vision_encoder.model
    learn = {n for n, p in vision.named_parameters() if p.requires_grad}
    assert learn and all(re.search(pattern, n) for n in learn)
    before = {n: t.clone() for n, t in vision.state_dict().items()}
    model.train()
    assert model.training and not any(module.training for module in model.vision_encoder.modules())
    model(pixel_values=torch.randn(3, 3, SIDE, SIDE), labels=random_labels()).loss.backward()
    torch.optim.SGD([p for p in vision.parameters() if p.requires_grad], lr=0.5).step()
    moved = {n for n, t in vision.state_dict().items() if not torch.equal(t, before[n])}
    assert moved and moved <= learn  # parameters that were chosen, and no batch statistics
    with pytest.raises(ValueError, match="pattern.*nowhere"):
        model.unfreeze_vision("nowhere")
    assert {n for n, p in vision.named_parameters() if p.requires_grad} == learn
    model.unfreeze_vision()
    assert {n for n, p in vision.named_parameters() if p.requires_grad} > learn
    assert model.vision_encoder.training


def test_another_image_size_than_the_configuration_names():
    encoder = VisionEncoder(
        SwinConfig(patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ).eval()
    assert encoder(torch.randn(1, 3, 96, 64))[1] == (12, 8)
    assert VisionEncoder(tiny_vision())(torch.randn(1, 3, 64, 96))[1] == (8, 12)


@pytest.mark.parametrize("system", ["additive", "cnn_transformer", "vit_transformer"])
def test_attention_is_chosen_for_whoever_has_it(tmp_path, system):
    """A CNN has none to choose, and does not forbid the captioner's choice."""
    model = tiny_model(**SYSTEMS[system])
    model.save_pretrained(tmp_path)
    for implementation in ("eager", "sdpa"):
        loaded = type(model).from_pretrained(tmp_path, attn_implementation=implementation)
        model.set_attn_implementation(implementation)
        for one in (loaded, model):
            vision = one.vision_encoder.model.config._attn_implementation
            expected = implementation if system == "vit_transformer" else "eager"
            assert (one.config._attn_implementation, vision) == (implementation, expected)


def test_a_model_without_regions_is_refused():
    with pytest.raises(ValueError, match="hgnet_v2"):
        VisionEncoder(HGNetV2Config())


def test_from_vision_pretrained_in_half_precision(tmp_path):
    """The folder's weights, in the captioner's type whatever the folder's."""
    theirs = MobileNetV2Model(copy.deepcopy(VISION["mobilenet_v2"][0])).half()
    theirs.save_pretrained(tmp_path)
    config = tiny_config()
    model = RnnCaptionerForConditionalGeneration.from_vision_pretrained(tmp_path, config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.vision_config.model_type == "mobilenet_v2"
    assert config.vision_config.model_type == "resnet"
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.vision_encoder.model.state_dict()[name], tensor.to(torch.get_default_dtype())) or (
            not tensor.is_floating_point()
        )
    model(pixel_values=torch.randn(3, 3, 64, 64), labels=random_labels()).loss.backward()
    model.save_pretrained(tmp_path / "captioner")
    loaded = RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_from_a_dual_model_comes_its_vision_tower(tmp_path):
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20, vocab_size=50)
    theirs = CLIPModel(CLIPConfig(text_config=text, vision_config=_TINY_VIT, projection_dim=8))
    theirs.save_pretrained(tmp_path)
    model = RnnCaptionerForConditionalGeneration.from_vision_pretrained(tmp_path, tiny_config())
    pixels = torch.randn(2, 3, SIDE, SIDE)
    expected = theirs.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.eval().vision_encoder(pixels)[0], expected)
    assert tiny_config(vision_config=theirs.config).vision_config.model_type == "clip_vision_model"


def test_the_image_processor_of_a_vision_model(tmp_path):
    settings = dict(
        size={"shortest_edge": 80},
        crop_size={"height": 72, "width": 72},
        do_center_crop=True,
        image_mean=[0.1, 0.2, 0.3],
    )
    (tmp_path / "preprocessor_config.json").write_text(__import__("json").dumps(settings))
    processor = CaptionerImageProcessor.from_vision_pretrained(tmp_path)
    assert (processor.size["height"], processor.size["width"]) == (72, 72)
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]


@pytest.mark.data
def test_the_real_mobilenet(data_folder):
    folder = data_folder / "mobilenet_v2_imagenet"
    model = RnnCaptionerForConditionalGeneration.from_vision_pretrained(folder, tiny_config())
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32)
    pixels = torch.randn(2, 3, 224, 224)
    model.freeze_vision()
    with torch.no_grad():
        regions, grid = model.train().vision_encoder(pixels)
        expected = theirs.eval()(pixels).last_hidden_state
    assert grid == (7, 7)
    torch.testing.assert_close(regions, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("name", ["someone/vision-model", "some/where/else", "empty"])
def test_a_vision_model_that_is_not_here_is_named(tmp_path, monkeypatch, name):
    """Neither a folder nor, without a network, on the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if name == "empty":
        ViTConfig(**_TINY_VIT).save_pretrained(tmp_path)
        name = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"vision model must be a folder, or a repository.*{name}"):
        RnnCaptionerForConditionalGeneration.from_vision_pretrained(name, tiny_config())
    with pytest.raises(FileNotFoundError, match=f"preprocessor_config.json.*{name}"):
        CaptionerImageProcessor.from_vision_pretrained(name)


def test_a_text_model_is_refused_by_name():
    with pytest.raises(ValueError, match="`vision_config` must be of a model that takes `pixel_values`.*'bert'"):
        VisionEncoder(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))


def lora(model, **settings):
    """The captioner with LoRA adapters, in training mode."""
    return get_peft_model(model, LoraConfig(r=2, init_lora_weights="gaussian", **settings)).train()


def trained_by_lora(model, folder, **settings):
    """The saved adapter of three steps, and the trained captioner."""
    adapted = lora(model, **settings)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.005)
    for _ in range(3):
        adapted(pixel_values=random_images(), labels=random_labels()).loss.backward()
        optimizer.step()
    adapted.save_pretrained(folder)
    return adapted.eval()


def test_lora_on_a_cnn_leaves_the_statistics_that_it_does_not_save(tmp_path):
    """Batch-norm statistics moved and were lost: the reloaded adapter gave other logits."""
    tiny_model().save_pretrained(tmp_path / "base")
    base = RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path / "base")
    convolutions = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Conv2d)]
    trained = trained_by_lora(base, tmp_path / "adapter", target_modules=convolutions)
    fresh = RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    inputs = dict(pixel_values=random_images(), decoder_input_ids=torch.full((3, 2), 2))
    with torch.no_grad():
        plain = RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path / "base").eval()(**inputs).logits
        found = trained(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, found)
    assert (found - plain).abs().max() > 1e-3


def test_lora_everywhere_trains_nothing_that_is_not_used(tmp_path):
    """`all-linear` put adapters into a ViT's pooler, which no gradient reaches."""
    adapted = lora(tiny_model(**SYSTEMS["vit_transformer"]), target_modules="all-linear")
    adapted(pixel_values=random_images(), labels=random_labels()).loss.backward()
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("vision_encoder" in name for name in trainable) and not any("pooler" in name for name in trainable)
    assert [name for name, parameter in trainable.items() if parameter.grad is None] == []


def test_batch_norms_learn_when_they_are_trainable():
    model = tiny_model().train()
    norms = [m for m in model.vision_encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training for norm in norms)
    model.freeze_vision()
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize("name", VISION)
def test_chosen_layers_stand_side_by_side(name):
    """Against the hidden states themselves, patch by patch; what lies behind the chosen ones is frozen."""
    config, grid, prefix = VISION[name]
    torch.manual_seed(0)
    model = VisionEncoder(config).eval().model
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    last = len(states) - 1
    fitting = [index for index, state in enumerate(states) if state.shape[2:] == states[last].shape[2:]]
    if states[last].ndim == 3:  # of hierarchical transformers only the last stage fills the grid
        fitting = [index for index, state in enumerate(states) if state.shape[1] == prefix + grid[0] * grid[1]]
    assert last in fitting
    for layers in (-1, fitting[0], [fitting[0], -1]):
        torch.manual_seed(0)
        encoder = VisionEncoder(config, layers).eval()
        with torch.no_grad():
            regions, found = encoder(pixels)
        chosen = [states[index] for index in ([layers] if isinstance(layers, int) else layers)]
        for place in range(found[0] * found[1]):
            row, column = divmod(place, found[1])
            expected = torch.cat(
                [state[:, :, row, column] if state.ndim == 4 else state[:, prefix + place] for state in chosen], dim=-1
            )
            torch.testing.assert_close(regions[:, place], expected)
        assert regions.shape[-1] == encoder.width
    early = VisionEncoder(config, fitting[0])
    early(pixels)[0].sum().backward()
    assert [n for n, p in early.named_parameters() if p.requires_grad != (p.grad is not None)] == []


def test_layers_that_there_are_not_or_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="vision_feature_layer.*between -3 and 2.*got 3"):
        VisionEncoder(VISION["vit"][0], 3)
    with pytest.raises(ValueError, match="vision_feature_layer.*one grid.*0.*-1"):
        VisionEncoder(VISION["convnext"][0], [0, -1])


@pytest.mark.parametrize("system", ["additive", "cnn_transformer", "vit_transformer"])
def test_a_captioner_of_other_layers_is_saved_and_loaded(tmp_path, system):
    layers = [-2, -1] if system == "vit_transformer" else -1
    model = tiny_model(**{**SYSTEMS[system], "vision_feature_layer": layers})
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.vision_feature_layer == layers
    pixels, labels = torch.randn(3, 3, 32, 32), random_labels()
    expected = model(pixel_values=pixels, labels=labels)
    torch.testing.assert_close(loaded(pixel_values=pixels, labels=labels).loss, expected.loss)
    features, _ = model.vision_encoder(pixels)
    torch.testing.assert_close(loaded(image_features=features, labels=labels).loss, expected.loss)
