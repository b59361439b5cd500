"""Configurations: rules, names and round trips."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from testing.tiny_models import tiny_config, tiny_vision
from transformers import AutoConfig

from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration, TransformerCaptionerConfig


@pytest.mark.parametrize(
    "changes,field,value",
    [
        (dict(attention="luong"), "attention", "luong"),
        (dict(attention_sampling="firm"), "attention_sampling", "firm"),
        (dict(cell="rnn"), "cell", "rnn"),
        (dict(region_size=0), "region_size", "0"),
        (dict(region_size=8, region_dropout=1.0), "region_dropout", "1.0"),
        (dict(region_dropout=0.3), "region_dropout", "0.3"),
        (dict(vision_feature_layer=[]), "vision_feature_layer", "[]"),
        (dict(vision_feature_layer="last"), "vision_feature_layer", "last"),
        (dict(attention="multi_head", num_attention_heads=3), "num_attention_heads", "3"),
        (dict(num_layers=0), "num_layers", "0"),
        (dict(hidden_size=-1), "hidden_size", "-1"),
        (dict(dropout=1.5), "dropout", "1.5"),
        (dict(label_smoothing=1), "label_smoothing", "1"),
        (dict(doubly_stochastic_lambda=-0.5), "doubly_stochastic_lambda", "-0.5"),
        (dict(eos_token_id=40), "eos_token_id", "40"),
        (dict(pad_token_id=3), "pad_token_id", "3"),
        (dict(hidden_size="wide"), "hidden_size", "wide"),
        (dict(attenton="dot"), "attention", "dot"),  # the message suggests the right name
        (dict(vision_config=dict(model_type="resnot")), "vision_config", "resnot"),
    ],
)
def test_a_bad_field_is_named_with_its_value(changes, field, value):
    refused(changes, field, value)


@pytest.mark.parametrize(
    "changes,field,value",
    [
        (dict(num_attention_heads=3), "num_attention_heads", "3"),
        (dict(norm="middle"), "norm", "middle"),
        (dict(position_embedding_type="rotary"), "position_embedding_type", "rotary"),
        (dict(activation="step"), "activation", "step"),
        (dict(encoder_layers=-1), "encoder_layers", "-1"),
        (dict(decoder_layers=0), "decoder_layers", "0"),
        (dict(intermediate_size=0), "intermediate_size", "0"),
        (dict(max_position_embeddings=0), "max_position_embeddings", "0"),
        (dict(hidden_size=18), "hidden_size", "18"),  # the grid's positions need four parts
        (dict(hidden_size=15, num_attention_heads=3, encoder_layers=0), "hidden_size", "15"),
        (dict(dropout=1.0), "dropout", "1.0"),
        (dict(encoder_layer=2), "encoder_layers", "2"),
    ],
)
def test_a_bad_field_of_a_transformer_is_named_with_its_value(changes, field, value):
    refused(dict(model_type="transformer_captioner", **changes), field, value)


def refused(changes, field, value):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        tiny_config(**changes)
    assert f"`{field}`" in str(error.value) or f"'{field}'" in str(error.value)
    assert value in str(error.value)


@pytest.mark.parametrize(
    "changes,field",
    [
        (dict(attention="dot", num_attention_heads=3), "num_attention_heads"),
        (dict(attention="additive", num_attention_heads=1), "num_attention_heads"),
        (dict(attention="general", attention_size=8), "attention_size"),
        (dict(attention="none", attention_size=8), "attention_size"),
        (dict(attention="none", context_mlp=True), "context_mlp"),
        (dict(attention="dot", num_attention_heads=None, context_norm=True), "context_norm"),
    ],
)
def test_a_field_without_effect_is_refused(changes, field):
    refused(changes, field, str(changes[field]))


def test_fields_without_effect_in_an_older_file_are_dropped(tmp_path):
    """Earlier versions wrote every field; such a folder still loads."""
    tiny_config(attention="none").save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written |= {"attention_size": 8, "num_attention_heads": 2, "initializer_range": 0.02}
    (tmp_path / "config.json").write_text(json.dumps(written))
    loaded = RnnCaptionerConfig.from_pretrained(tmp_path)
    assert loaded.attention_size is None and loaded.num_attention_heads is None


def test_there_is_no_field_for_a_range_of_initial_weights():
    """Weights are initialised by Xavier's rule, whatever such a field says."""
    refused(dict(initializer_range=5.0), "initializer_range", "5.0")


def test_fields_changed_while_loading_are_checked(tmp_path):
    RnnCaptionerForConditionalGeneration(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="attention"):
        RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path, attention="luong")


def test_round_trip_and_defaults(tmp_path):
    config = tiny_config(attention="multi_head", cell="gru", num_layers=2)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is RnnCaptionerConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.num_hidden_layers == 2 and loaded.vision_config.to_dict() == tiny_vision().to_dict()
    default = RnnCaptionerConfig()
    assert default.vision_config.model_type == "resnet" and default.attention == "additive"
    assert (default.pad_token_id, default.bos_token_id, default.eos_token_id) == (1, 2, 3)
    assert default.decoder_start_token_id == 2 and default.attention_size == default.hidden_size == 512


def test_round_trip_and_defaults_of_a_transformer(tmp_path):
    config = tiny_config("transformer_captioner", norm="pre", position_embedding_type="learned")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is TransformerCaptionerConfig and loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.num_hidden_layers == 2 and loaded.max_position_embeddings == 128
    default = TransformerCaptionerConfig()  # the base model of Vaswani et al. 2017, table 3
    assert (default.encoder_layers, default.decoder_layers, default.num_attention_heads) == (6, 6, 8)
    assert (default.hidden_size, default.intermediate_size, default.dropout) == (512, 2048, 0.1)
    assert (default.norm, default.position_embedding_type, default.activation) == ("post", "sinusoidal", "relu")
    assert default.max_position_embeddings is None and default.tie_word_embeddings
    odd = dict(hidden_size=15, num_attention_heads=3, encoder_layers=0, position_embedding_type="learned")
    assert tiny_config("transformer_captioner", **odd).hidden_size == 15


def test_a_file_of_another_version_may_carry_unknown_names(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("{", '{"something_new": 1,', 1))
    assert AutoConfig.from_pretrained(tmp_path).something_new == 1


def test_a_dictionary_is_a_vision_configuration():
    config = tiny_config(vision_config=dict(model_type="vit", hidden_size=24, num_attention_heads=2))
    assert config.vision_config.model_type == "vit" and config.vision_config.hidden_size == 24
