"""`hf_captioner.commands.measure_serving` as a script of a clone; `--help` tells its options."""

from hf_captioner.commands import run
from hf_captioner.commands.measure_serving import main

if __name__ == "__main__":
    run(main)
