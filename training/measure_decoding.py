"""`hf_captioner.commands.measure_decoding` as a script of a clone; `--help` tells its options."""

from hf_captioner.commands import run
from hf_captioner.commands.measure_decoding import main

if __name__ == "__main__":
    run(main)
