"""The options of `train`: none is ignored, the file and the command line mean the same, what is wrong is one line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from testing.training import TINY, arguments
from transformers import AutoModelForImageTextToText, GenerationConfig

from hf_captioner.commands import run, train
from hf_captioner.errors import InputError

BASE = ["--train_data", "shapes:rows=8", "--eval_data", "shapes:rows=4,seed=1", "--output_dir", "out", "--do_train"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A captioner whose generation defaults are not those of `train`."""
    folder = tmp_path_factory.mktemp("options") / "first"
    settings = dict(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, max_steps=1)
    train.main(
        arguments(folder, **settings, max_new_tokens=9, num_beams=2, length_penalty=1.5, no_repeat_ngram_size=3)
    )
    return folder


@pytest.mark.parametrize(
    "option,value",
    [
        ("image_size", "64"),
        ("vision_model", "mobilenet"),
        ("model_type", "transformer_captioner"),
        ("vocab_size", "500"),
        ("tokenizer", "bpe"),
        ("min_frequency", "2"),
    ],
)
def test_what_describes_a_new_captioner_is_refused_with_a_saved_one(option, value):
    with pytest.raises(InputError, match=f"`{option}` must be left out with `model`.*{value[:8]}"):
        train.parse_arguments([*BASE, "--model", "outputs/first", f"--{option}", value])


def test_single_fields_of_a_saved_captioner_change(saved, tmp_path):
    """Those of the file and of the command line; all weights are where the first stage left them."""
    path = config_file(tmp_path, f"model: {saved}\nmodel_config: {{dropout: 0.2, attention_sampling: hard}}\n")
    changes = '{"attention_sampling": "hard", "label_smoothing": 0.1}'
    still = ["--max_steps", "1", "--learning_rate", "1e-30", "--freeze_vision", "--disable_tqdm", "true"]
    still += ["--report_to", "none", "--save_strategy", "no"]
    for name, options in (
        ("file", ["--config", path, "--model_config", '{"label_smoothing": 0.1}']),
        ("line", ["--model", str(saved), "--model_config", changes]),
    ):
        train.main([*BASE, *options, *still, "--output_dir", str(tmp_path / name)])
        first, second = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (saved, tmp_path / name))
        config = second.config
        assert (config.attention_sampling, config.label_smoothing, config.hidden_size) == ("hard", 0.1, 16)
        assert config.dropout == (0.2 if name == "file" else first.config.dropout)
        for (key, theirs), mine in zip(first.named_parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, msg=lambda m, n=key: f"{n}: {m}")
        assert "attention_baseline" in second.state_dict()


@pytest.mark.parametrize(
    "fields,message",
    [
        ("nonsense", "`model_config` must be a mapping in JSON, got 'nonsense'"),
        ('{"vocab_size": 50}', "`model_config` must not hold `vocab_size`"),
        ('{"attenion": "dot"}', "`model_config` must hold fields of a rnn_captioner, got 'attenion'.*`attention`"),
        ('{"dropout": 1.5}', "(?s)`model_config`: .*`dropout` must be in"),
        ('{"dropout": "much"}', "(?s)`model_config`: .*dropout"),
        ('{"hidden_size": 32}', "`model_config` must leave .* the weights that it has, got .*hidden_size"),
        ('{"context_mlp": true}', "`model_config` must leave .* the weights that it has, got .*context_mlp"),
        ('{"num_layers": 2}', "`model_config` must leave .* the weights that it has, got .*num_layers"),
        ('{"attention": "dot"}', "`model_config` must leave .* the weights that it has, got .*dot"),
    ],
)
def test_fields_that_a_saved_captioner_cannot_have_are_named(saved, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        train.main([*BASE, "--model", str(saved), "--model_config", fields, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_generation_defaults_of_a_saved_captioner_stay(saved, tmp_path):
    settings = dict(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, max_steps=1, model=saved)
    command = [part for part in arguments(tmp_path / "second", **settings) if part not in ("--max_new_tokens", "8")]
    command[command.index("--config") + 1] = str(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("per_device_train_batch_size: 4\ndo_train: true\n")
    train.main(command)
    found = GenerationConfig.from_pretrained(tmp_path / "second")
    assert (found.max_new_tokens, found.num_beams) == (9, 2)
    assert (found.length_penalty, found.no_repeat_ngram_size) == (1.5, 3)
    others = ["--num_beams", "4", "--no_repeat_ngram_size", "0"]
    train.main([*command, "--output_dir", str(tmp_path / "third"), *others])
    found = GenerationConfig.from_pretrained(tmp_path / "third")
    assert (found.num_beams, found.length_penalty, found.no_repeat_ngram_size) == (4, 1.5, 0)


def config_file(folder: Path, text: str) -> str:
    (folder / "own.yaml").write_text(text)
    return str(folder / "own.yaml")


@pytest.mark.parametrize("spelling", ["apart", "joined"])
def test_the_file_and_single_fields_of_the_model_are_merged(tmp_path, spelling):
    path = config_file(tmp_path, f"learning_rate: 0.25\nmodel_config: {json.dumps(TINY | {'cell': 'gru'})}\n")
    fields = '{"attention": "dot", "hidden_size": 20}'
    options = ["--config", path, "--model_config", fields]
    if spelling == "joined":
        options = [f"--config={path}", f"--model_config={fields}"]
    model_args, _, _, args = train.parse_arguments([*BASE, *options])
    assert json.loads(model_args.model_config) == TINY | {"cell": "gru", "attention": "dot", "hidden_size": 20}
    assert args.learning_rate == 0.25


def test_a_model_on_the_command_line_stands_for_the_new_one_of_the_file(tmp_path, caplog):
    path = config_file(tmp_path, "model_type: transformer_captioner\nimage_size: 64\nmodel_config: {hidden_size: 8}\n")
    model_args, *_ = train.parse_arguments([*BASE, "--config", path, "--model", "outputs/first"])
    assert model_args.model == "outputs/first" and model_args.model_config == "{}"
    assert "`model` stands in place of model_type, image_size, model_config" in caplog.text
    path = config_file(tmp_path, "model: outputs/first\nimage_size: 64\n")
    with pytest.raises(InputError, match="`image_size` must be left out"):
        train.parse_arguments([*BASE, "--config", path])


@pytest.mark.parametrize(
    "options,message",
    [
        (["--config"], "config"),
        (["--config", "nowhere.yaml"], "`config` must be a YAML file or one of .*quickstart.*nowhere.yaml"),
        (["--model_config", "{nonsense"], "`model_config` must be a mapping in JSON.*nonsense"),
        (["--model_config", "[1]"], "`model_config` must be a mapping in JSON"),
        (["--objective", "self_critical", "--reward", "{"], "`reward` must be a mapping in JSON"),
        (["--reward", '{"bleu_4": 1.0}'], "`reward` must be left out unless `objective` is self_critical"),
        (["--samples_per_image", "4"], "`samples_per_image` must be left out"),
        (["--teachers", "x"], r"`teachers` must be left out unless `objective` is distillation, got \['x'\]"),
        (["--teacher_weight", "0.5"], "`teacher_weight` must be left out unless `objective` is distillation, got 0.5"),
        (
            ["--objective", "distillation", "--teachers", "x", "--teacher_weight", "2"],
            "`teacher_weight` must be from 0 to 1, got 2.0",
        ),
        (["--objective", "distillation"], "`teachers` must be the folders of captioners to learn from, got none"),
        (["--freeze_vision", "--trainable_vision", "stages"], "`trainable_vision` must be left out"),
        (["--freeze_vision", "--lora", "4"], "`lora` must be left out with `freeze_vision`, got 4"),
        (["--lora", "0"], "`lora` must be at least 1, got 0"),
        (["--lora", "4", "--push_to_hub", "true"], "`hub_strategy` must be end with `lora`.* got every_save"),
        *[
            (["--hub_strategy", name, "--push_to_hub", "1"], f"`hub_strategy` must be end or every_save.* got {name}$")
            for name in ("checkpoint", "all_checkpoints")
        ],
        (["--freeze_vision", "--vision_learning_rate", "0.1"], "`vision_learning_rate` must be left out"),
        (
            ["--early_stopping_patience", "2", "--metric_for_best_model", "cider_d"],
            "`early_stopping_patience` needs `metric_for_best_model` and an `eval_strategy`, got cider_d and no",
        ),
        (
            ["--early_stopping_patience", "2", "--eval_strategy", "epoch"],
            "`early_stopping_patience` needs `metric_for_best_model` and an `eval_strategy`, got None and epoch",
        ),
        (["--early_stopping_patience", "0"], "`early_stopping_patience` must be at least 1, got 0"),
        (["--smallest_crop", "1.5"], "`smallest_crop` must be in"),
        (["--cached_crops", "2"], "`cached_crops` must be left out without `feature_cache`, got 2"),
        (["--dtype", "auto"], "`dtype` must be left out without `feature_cache`, got 'auto'"),
        (
            ["--feature_cache", "x", "--freeze_vision", "--dtype", "half"],
            "`dtype` must be one of auto, float32, bfloat16, got 'half'",
        ),
        (
            ["--feature_cache", "x", "--freeze_vision", "--smallest_crop", "0.7"],
            "`smallest_crop` and `cached_crops` must come together with `feature_cache`, got 0.7 and None",
        ),
        (["--no_repeat_ngram_size", "-1"], "`no_repeat_ngram_size` must be at least 0, got -1"),
        (["--lerning_rate", "0.1"], "`--lerning_rate` is not an option; did you mean `learning_rate`"),
        (["--learning_rate", "fast"], "learning_rate.*fast"),
        (["--do_train", "false"], "`do_train` must be true unless `model`"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises(InputError, match=message):
        train.parse_arguments([*BASE, *options])


@pytest.mark.parametrize(
    "text,message",
    [
        ("- a list", "`config` must be a mapping of options"),
        ("a: [", "`config` must be YAML"),
        ("lerning_rate: 1", "`lerning_rate` is not an option; did you mean `learning_rate`"),
        ("learning_rate: [1, 2]", "`learning_rate` must be one value"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        train.parse_arguments([*BASE, "--config", config_file(tmp_path, text)])


def test_without_training_a_saved_captioner_is_measured(saved, tmp_path, capsys):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    folder = tmp_path / "measured"
    options = ["--model", str(saved), "--do_train", "false", "--output_dir", str(folder)]
    train.main([*BASE[:4], *options, "--report_to", "none", "--disable_tqdm", "true"])
    assert "bleu_4" in (folder / "eval_results.json").read_text()
    assert not list(folder.glob("*.safetensors")) and "metrics and captions" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "spelling", [["--hub-token", "hf_secret"], ["--hub_token=hf_secret"], ["--hub-token=hf_secret"]]
)
def test_the_token_is_written_nowhere(tmp_path, spelling):
    settings = dict(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, max_steps=1)
    train.main([*arguments(tmp_path, **settings), *spelling])
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes(), path


def test_a_template_that_is_missing_is_noticed_before_training():
    """The card's template is read when the command is imported."""
    from hf_captioner.sharing import card

    assert "{{ card_data }}" in card.TEMPLATE


def test_errors_of_the_user_and_of_ours(capsys):
    def refuse(argv):
        raise InputError("`thing` must be\n  one, got two")

    def bug(argv):
        raise TypeError("a bug")

    with pytest.raises(SystemExit) as stopped:
        run(refuse, [])
    assert stopped.value.code == 2 and capsys.readouterr().err == "error: `thing` must be one, got two\n"
    with pytest.raises(InputError):
        run(refuse, ["--debug"])
    with pytest.raises(InputError):
        run(refuse, ["--debug", "--other"])
    with pytest.raises(TypeError, match="a bug"):
        run(bug, [])
    seen = []
    run(seen.append, ["--debug", "underflow_overflow", "--x"])  # transformers' own option
    assert seen == [["--debug", "underflow_overflow", "--x"]]


def test_trainers_are_public_and_imported_on_first_use():
    import hf_captioner

    assert {"CaptioningTrainer", "SelfCriticalTrainer"} <= set(hf_captioner.__all__)
    assert hf_captioner.CaptioningTrainer.__name__ == "CaptioningTrainer"
    assert sys.modules["hf_captioner.trainers"].CaptioningTrainer is hf_captioner.CaptioningTrainer


def test_an_end_of_several_tokens_agrees_with_the_tokenizer(saved):
    model = AutoModelForImageTextToText.from_pretrained(saved, dtype=torch.float32)
    _, processor = train.read_captioner(str(saved))
    model.config.eos_token_id = [3, 5]
    train.check_agreement(model.config, processor.tokenizer)
    model.config.eos_token_id = [4, 5]
    with pytest.raises(InputError, match="`eos_token_id`"):
        train.check_agreement(model.config, processor.tokenizer)
