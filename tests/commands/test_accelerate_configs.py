"""What `accelerate launch` is told by the files that are shipped for it, as accelerate itself reads them."""

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from hf_captioner.commands.shipped import CONFIGS

FOLDER = CONFIGS / "accelerate"


def launched(name: str, *options: str):
    """The launcher's arguments and what it read from the file."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *options, "training/train.py", "--config", "quickstart"]
    arguments = launch_command_parser().parse_args(command)
    arguments, read, _ = _validate_launch_command(arguments)
    assert arguments.training_script == "training/train.py" and arguments.mixed_precision == "no"
    return arguments, read


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


def test_weights_in_parts():
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


def test_deepspeed_takes_batches_from_the_training():
    arguments, read = launched("deepspeed")
    assert read.distributed_type == DistributedType.DEEPSPEED and arguments.use_deepspeed
    arguments.deepspeed_fields_from_accelerate_config = ",".join(read.deepspeed_config)  # as the launcher does
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert (
        environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == environment["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
    )
