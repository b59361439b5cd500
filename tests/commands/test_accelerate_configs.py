"""What `accelerate launch` is told by the files that are shipped for it, as accelerate itself reads them."""

import importlib.util
import sys

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from testing.training import arguments as training_arguments
from torch.distributed.fsdp import OffloadPolicy, StateDictType

from hf_captioner.commands.program import main
from hf_captioner.commands.shipped import CONFIGS

FOLDER = CONFIGS / "accelerate"


def launched(name: str, *options: str):
    """The launcher's arguments and what it read from the file."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "training/train.py", "--config", "quickstart"]
    arguments = launch_command_parser().parse_args(command)
    arguments, read, _ = _validate_launch_command(arguments)
    assert arguments.training_script == "training/train.py" and arguments.mixed_precision == "no"
    return arguments, read


def as_the_training_reads(environment: dict[str, str], plugin: type, monkeypatch):
    """What the launched process makes of the variables that it is given."""
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, str(value))
    return plugin()


@pytest.fixture(autouse=True)
def port(monkeypatch):
    """The launcher is told a port, so that it looks for none."""
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)


def test_every_file_is_one_that_accelerate_reads():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"ddp", "fsdp", "deepspeed"}
    for path in FOLDER.glob("*.yaml"):
        arguments, read = launched(path.stem, "--num_processes", "4")
        assert (arguments.num_processes, read.num_processes) == (4, 2)
        sub_options = {**read.fsdp_config, **read.deepspeed_config}
        assert all(hasattr(arguments, name) for name in sub_options), path  # what accelerate would ignore


def test_one_process_for_each_gpu():
    arguments, read = launched("ddp")
    assert read.distributed_type == DistributedType.MULTI_GPU and arguments.multi_gpu
    assert not arguments.use_fsdp and not arguments.use_deepspeed
    assert "ACCELERATE_USE_FSDP" not in prepare_multi_gpu_env(arguments)


def test_weights_in_parts(monkeypatch):
    arguments, read = launched("fsdp")
    assert read.distributed_type == DistributedType.FSDP and arguments.use_fsdp and not arguments.multi_gpu
    environment = prepare_multi_gpu_env(arguments)
    expected = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",  # so that checkpoints have whole weights
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    assert {name: environment[name] for name in expected} == expected
    plugin = as_the_training_reads(environment, FullyShardedDataParallelPlugin, monkeypatch)
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    assert type(plugin.cpu_offload) is OffloadPolicy  # the one that leaves all on the GPU


def test_deepspeed_takes_batches_from_the_training(monkeypatch):
    arguments, read = launched("deepspeed")
    assert read.distributed_type == DistributedType.DEEPSPEED and arguments.use_deepspeed
    arguments.deepspeed_fields_from_accelerate_config = ",".join(read.deepspeed_config)  # as the launcher does
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert (
        environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == environment["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
    )
    plugin = as_the_training_reads(environment, DeepSpeedPlugin, monkeypatch)
    assert plugin.zero_stage == 2 and not plugin.zero3_init_flag
    read_by_deepspeed = plugin.deepspeed_config
    assert read_by_deepspeed["gradient_accumulation_steps"] == read_by_deepspeed["gradient_clipping"] == "auto"
    assert read_by_deepspeed["train_micro_batch_size_per_gpu"] == read_by_deepspeed["train_batch_size"] == "auto"
    assert read_by_deepspeed["zero_optimization"]["offload_optimizer"]["device"] == "none"


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_without_deepspeed_it_is_one_line_that_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(sys, "argv", ["hf-captioner", "train", *training_arguments(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(said) == 1 and not (tmp_path / "out").exists()
    assert "must be installed" in said[0] and "deepspeed" in said[0]
