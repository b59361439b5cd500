"""A captioner as the commands use it: read from a folder, and asked for captions batch by batch."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from transformers import pipeline
from transformers.utils.logging import disable_progress_bar

from ..data.image_files import ImageFile
from ..decoding import word_probabilities
from ..errors import InputError, brief
from ..models.generation_captioner import GENERATION_BOUNDS
from ..models.pipeline_captioner import TASK, needs_images
from . import FOLDER_ERRORS
from .decoding_options import DecodingArguments

MAX_BEAMS = GENERATION_BOUNDS["num_beams"][1]
THREADS = min(16, 2 * (os.cpu_count() or 1))  # that read images


@dataclass(frozen=True)
class Settings:
    """On what the captions of a run depend."""

    model: str
    prompt: str
    num_beams: int | None
    min_score: float | None
    words: bool
    existing: str
    dtype: str
    decoding: DecodingArguments

    def flat(self) -> dict:
        """`None` where nothing was asked for, so that a run goes on that was begun before there was the question."""
        own = {name: value for name, value in asdict(self).items() if name != "decoding"}
        own["dtype"] = None if self.dtype == "auto" else self.dtype
        return own | self.decoding.settings()


class Captioner:
    """The pipeline, step by step: reading is done ahead of the model by threads, an image that fails alone."""

    def __init__(self, settings: Settings):
        self.settings = settings
        disable_progress_bar()  # of weights being loaded; there is one of images
        try:
            self.pipeline = pipeline(TASK, model=settings.model, dtype=settings.dtype)
        except FOLDER_ERRORS as error:
            reason = brief(error).split(" See the original errors")[0]  # behind it is a traceback
            raise InputError(
                f"`--model` must be the folder or Hub name of a captioner, got {settings.model!r}: {reason}"
            ) from error
        self.tokenizer = self.pipeline.processor.tokenizer
        own = self.pipeline.model.config.min_score or 0
        self.min_score = own if settings.min_score is None else settings.min_score
        self.options = settings.decoding.options(
            self.pipeline.model, self.pipeline.processor, num_beams=settings.num_beams
        )
        self.keep_image = needs_images(self.options.get("custom_generate"))

    def read(self, image: ImageFile, prompt: str | None = None):
        """An image as the model takes it; its caption begins with the prompt, by default that of the settings."""
        prompt = self.settings.prompt if prompt is None else prompt
        return self.pipeline.preprocess(image.source(), prompt=prompt, keep_image=self.keep_image)

    def rows(self, batch: list) -> list[dict]:
        """Of pairs of an image and what reading it gave."""
        inputs = [read for _, read in batch if not isinstance(read, Exception)]
        captions = iter(self.captions(inputs) if inputs else [])
        rows = []
        for image, read in batch:
            if isinstance(read, Exception):
                rows.append({"image": image.name, "error": brief(read)})
            else:
                rows.append({"image": image.name, **next(captions)})
        return rows

    def captions(self, inputs: list) -> Iterator[dict]:
        together = type(inputs[0])(
            {
                name: torch.cat([one[name] for one in inputs]) if name != "images" else [one[name] for one in inputs]
                for name in inputs[0]
            }
        )
        try:
            outputs = self.pipeline.forward(together, generate_kwargs=self.options)
        except InputError:
            raise
        except ValueError as error:  # as of a prompt that is longer than a caption may be
            raise InputError(f"the captioner must be able to do what the options say, got: {error}") from error
        for index in range(len(inputs)):
            found, *others = self.pipeline.postprocess({name: one[index : index + 1] for name, one in outputs.items()})
            row = self.scored(found)
            if self.settings.decoding.num_return_sequences is not None:
                row["others"] = [self.scored(other) for other in others]
            if self.settings.words:
                probabilities = [token["probability"] for token in found["tokens"]]
                said = outputs["sequences"][index, 0, -outputs["log_probabilities"].shape[-1] :]
                row["words"] = word_probabilities(self.tokenizer, said[: len(probabilities)].tolist(), probabilities)
            yield row

    def scored(self, found: dict) -> dict:
        """A caption, or none if its score is too low, with its scores."""
        caption = None if found["score"] < self.min_score else found["generated_text"]
        return {"caption": caption, **{name: found[name] for name in ("score", "search_score") if name in found}}
