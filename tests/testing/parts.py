"""Trainings whose weights lie in parts on several processes, on a machine without accelerators."""

import os

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hf_captioner.commands.shipped import CONFIGS
from hf_captioner.trainers import CaptioningTrainer

FSDP = CONFIGS / "accelerate" / "fsdp.yaml"
in_parts: list[int] = []  # steps of this process, in which all weights were


def weights_in_parts() -> None:
    """
    FSDP, as accelerate/fsdp.yaml says. accelerate has it on accelerators alone and stays with DDP on CPUs, on which
    torch's FSDP does run.
    """
    arguments = launch_command_parser().parse_args(["--config_file", str(FSDP), "training/train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    told = prepare_multi_gpu_env(arguments)
    os.environ.update({k: v for k, v in told.items() if k.startswith("FSDP_") or k == "ACCELERATE_USE_FSDP"})
    usual = AcceleratorState.__init__

    def with_parts(self, *args, fsdp_plugin=None, **kwargs):
        usual(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        if plugin is not None:  # also when the state, which all share, is asked for again
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

    AcceleratorState.__init__ = with_parts
    usual_step = CaptioningTrainer.training_step

    def training_step(self, model, *args, **kwargs):
        # An evaluation leaves the last layer whole until the next step has used it.
        in_pieces = [isinstance(weight, DTensor) for weight in model.parameters()]
        assert isinstance(model, FSDPModule) and (any if in_parts else all)(in_pieces)
        in_parts.append(self.state.global_step)
        return usual_step(self, model, *args, **kwargs)

    CaptioningTrainer.training_step = training_step
