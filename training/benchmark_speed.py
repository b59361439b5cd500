"""`hf_captioner.commands.benchmark_speed` as a script of a clone; `--help` tells its options."""

from hf_captioner.commands import run
from hf_captioner.commands.benchmark_speed import main

if __name__ == "__main__":
    run(main)
