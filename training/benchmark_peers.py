"""`hf_captioner.commands.benchmark_peers` as a script of a clone; `--help` tells its options."""

from hf_captioner.commands import run
from hf_captioner.commands.benchmark_peers import main

if __name__ == "__main__":
    run(main)
