"""A captioner that takes time and computes nothing, to test how work is shared."""

import os
import signal
import time
from pathlib import Path

from PIL import Image

from hf_captioner.commands.bulk import BatchCaptioner
from hf_captioner.commands.captioner import Settings
from hf_captioner.data.image_files import ImageFile
from hf_captioner.errors import brief

from .held import held_by


class SleepingCaptioner(BatchCaptioner):
    """
    Says the size of an image, after a while.

    Args:
        seconds: that the model has for an image.
        diary: a folder in which each process notes, batch by batch, the time and the memory in MB that it holds.
        settings: are not looked at.
    """

    def __init__(self, seconds: float, diary: Path, settings: Settings | None = None):
        self.seconds, self.diary, self.captioner = seconds, diary, self

    def read(self, image: ImageFile) -> tuple[int, int]:
        source = image.source()
        if image.name.endswith("deadly.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        with Image.open(source) if isinstance(source, str) else source as opened:
            opened.load()
            return opened.size

    def rows(self, batch: list) -> list[dict]:
        start = time.time()
        time.sleep(self.seconds * len(batch))
        with open(self.diary / str(os.getpid()), "a") as file:
            file.write(f"{start} {held_by(os.getpid())[0]}\n")
        return [
            {"image": image.name, "error": brief(read)}
            if isinstance(read, Exception)
            else {"image": image.name, "caption": f"{read[0]} by {read[1]}", "score": 0.5}
            for image, read in batch
        ]
