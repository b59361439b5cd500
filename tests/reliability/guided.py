"""
Bytes that are changed until they reach other lines of our readers, by atheris (libFuzzer), where the random ones of
`test_fuzz.py` and `test_fuzz_files.py` know nothing of the code. atheris is for Linux alone and no part of the extra
`dev`:

    pip install atheris
    python tests/reliability/guided.py captions.jsonl outputs/found -runs=20000

After the target come libFuzzer's options and a folder for bytes that reach a new line, which may be left out. What
raises an error that it must not is written to the working folder as `crash-...`; it belongs into
`tests/reliability/corpus/TARGET/`, where `test_corpus.py` finds it, when what it showed is mended.
"""

import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

CORPUS = Path(__file__).with_name("corpus")


def targets() -> dict:
    """name -> function of a folder to write to and bytes"""
    import test_fuzz
    import test_fuzz_files

    found = {
        "image": test_fuzz.bytes_of_an_image,
        "settings": test_fuzz_files.bytes_of_settings,
        "progress": test_fuzz_files.bytes_of_progress,
        "coco": test_fuzz_files.bytes_of_coco_files,
    }
    for suffix in (".txt", ".jsonl", ".csv", ".parquet"):
        found[f"captions{suffix}"] = partial(test_fuzz_files.bytes_of_captions, suffix=suffix)
    for suffix in (".json", ".jsonl", ".csv", ".parquet"):
        found[f"table{suffix}"] = partial(test_fuzz.bytes_of_a_table, suffix=suffix)
    return found


def main(name: str, *options: str) -> None:
    import atheris

    sys.path.insert(0, str(CORPUS.parents[1]))  # `testing`
    os.environ["HF_HUB_OFFLINE"] = "1"
    with atheris.instrument_imports(include=["hf_captioner"]), TemporaryDirectory() as temporary:
        os.environ["HF_DATASETS_CACHE"] = temporary
        import test_fuzz
        from datasets import disable_progress_bars

        disable_progress_bars()
        target, folder = targets()[name], Path(temporary)
        if name.startswith("table"):
            folder = test_fuzz.prepared(folder)
        seeds = [str(CORPUS / name)]
        own = [option for option in options if not option.startswith("-")]  # the first folder is the one written to
        for found in own:
            Path(found).mkdir(parents=True, exist_ok=True)
        atheris.Setup(["guided", *own, *seeds, *(set(options) - set(own))], lambda content: target(folder, content))
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
