"""`make results`: every row of the table is a training that could begin, and what is there is not made again."""

import json
import shlex
import shutil
import subprocess

import pytest
from testing import ROOT
from transformers import AutoConfig

from hf_captioner import RnnCaptionerConfig
from hf_captioner.checkpoints import PHOTOGRAPHS
from hf_captioner.commands import card, evaluate, train
from hf_captioner.commands.parsing import CommandParser
from hf_captioner.models.vision_encoder import VisionEncoder

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(folder, *options) -> list[list[str]]:
    """What make would do for the results, each command as its arguments."""
    done = subprocess.run(
        ["make", "-n", "results", f"RESULTS={folder}", "DATA=data", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if str(folder) in line]


def value(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_every_row_can_begin(tmp_path):
    made = commands(tmp_path)
    trainings = [arguments[3:] for arguments in made if arguments[2:3] == ["training/train.py"]]
    rows = {value(arguments, "--output_dir").split("/")[-1]: arguments for arguments in trainings}
    assert len(rows) == len(trainings) == 15 and len(made) == 45
    fields = {}
    for name, arguments in rows.items():  # in the order of their making
        model_args, data_args, objective, args = train.parse_arguments(arguments)
        given = json.loads(model_args.model_config)
        if model_args.model is None:
            fields[name] = given
        else:
            fields[name] = fields[model_args.model.split("/")[-1]] | given
        model_type = "transformer_captioner" if "transformer" in name else "rnn_captioner"
        config = AutoConfig.for_model(model_type, **fields[name])
        kinds = {"distilled": "distillation", "scst": "self_critical"}
        assert objective.objective == kinds.get(name.split("_")[-1], "cross_entropy")
        known = set(fields) - {name}
        assert {folder.split("/")[-1] for folder in objective.teachers or []} <= known  # made before
        learns_to_see = name in ("unfrozen", "vit_transformer")
        assert (data_args.feature_cache is None) == learns_to_see != model_args.freeze_vision
        assert ("hard" in name) == (getattr(config, "attention_sampling", "soft") == "hard")
        assert args.seed == 0 and args.do_train and args.load_best_model_at_end
    assert {fields[name]["attention"] for name in ("show_and_tell_lstm", "show_and_tell_gru")} == {"none"}
    assert fields["show_and_tell_gru"]["cell"] == "gru" and fields["hard_multi_head"]["attention"] == "multi_head"
    for command, arguments in (("evaluate", evaluate), ("card", card)):
        for parts in made:
            if parts[1] == command:
                types = [arguments.Arguments] + ([evaluate.SourceArguments] if command == "evaluate" else [])
                CommandParser(*types).parse(parts[2:])


def test_what_is_there_is_not_made_again(tmp_path):
    (tmp_path / "additive" / "evaluation").mkdir(parents=True)
    (tmp_path / "additive" / "training.json").write_text("{}")
    rest = [parts for parts in commands(tmp_path, "ROWS=additive dot") if f"{tmp_path}/additive" in parts]
    assert [parts[1] for parts in rest] == ["evaluate", "card"]
    (tmp_path / "additive" / "evaluation" / "metrics.json").write_text("{}")
    assert commands(tmp_path, "ROWS=additive") == []
    later = commands(tmp_path, "ROWS=hard", "SEED=2")
    assert [value(parts, "--model") for parts in later][0] == f"{tmp_path}/additive" and len(later) == 3
    assert value(later[0], "--seed") == "2"


def test_the_unfrozen_recipe_names_blocks_of_the_cnn():
    """The last ten of its 21 blocks, without the depthwise filters."""
    model_args, *_ = train.parse_arguments(["--config", "flickr8k_rnn_additive_unfrozen"])
    config = RnnCaptionerConfig.from_pretrained(PHOTOGRAPHS)
    encoder = VisionEncoder(config.vision_config, config.vision_feature_layer)
    encoder.set_trainable(True, model_args.trainable_vision)
    learn = [name for name, parameter in encoder.model.named_parameters() if parameter.requires_grad]
    assert {int(name.split(".")[2]) for name in learn} == set(range(11, 21))
    assert len(learn) == 80 and not any(name.endswith("depthwise_conv.depthwise_conv.weight") for name in learn)
