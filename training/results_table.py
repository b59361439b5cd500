"""`hf_captioner.commands.results_table` as a script of a clone; `--help` tells its options."""

from hf_captioner.commands import run
from hf_captioner.commands.results_table import main

if __name__ == "__main__":
    run(main)
