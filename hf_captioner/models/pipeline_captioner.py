"""`pipeline("image-captioning")`: images in, captions with their probabilities out."""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from os import PathLike, fspath
from types import GeneratorType
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from transformers import BatchFeature, Pipeline, PreTrainedModel

from .compat import asked_dtype
from .confidence_captioner import token_log_probabilities
from .image_processing_captioner import open_image
from .image_reading import to_rgb, why_unreadable
from .machine_captioner import THREADS, choose_precision
from .tokenization_captioner import token_texts

TASK = "image-captioning"


def needs_images(search: Callable | None) -> bool:
    """Whether a search, a callable for `generate(custom_generate=...)`, must be given the images themselves."""
    return search is not None and "images" in inspect.signature(search).parameters


class _Numbered(NamedTuple):
    """One of several images, or why it could not be taken out of them."""

    place: int
    image: Any


class _NumberedImages(Dataset):
    def __init__(self, images: Any):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> _Numbered:
        try:
            return _Numbered(place, self.images[place])
        except Exception as error:  # of a data set that reads the image now
            return _Numbered(place, error)

    def __iter__(self) -> Iterator[_Numbered]:
        return (self[place] for place in range(len(self)))


def _ahead(function: Callable, images: _NumberedImages, ahead: int) -> Iterator[Future]:
    """
    What `function` makes of every image, in order and by threads, at most `ahead` images before it is asked for. The
    images are taken out of what holds them by the caller's thread alone, for a data set need not stand several.
    """
    pool = ThreadPoolExecutor(THREADS)
    pending: deque[Future] = deque()
    try:
        for image in images:
            pending.append(pool.submit(function, image))
            if len(pending) > ahead:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(cancel_futures=True)


def _broken_weights(model: PreTrainedModel) -> str | None:
    """The name of weights that are not finite, if there are such."""
    return next((name for name, weights in model.state_dict().items() if not weights.isfinite().all()), None)


def _why_not_finite(model: PreTrainedModel, pixels: torch.Tensor) -> str:
    """What is at fault where a captioner's numbers are not finite."""
    name = _broken_weights(model)
    if name is not None:
        return f"the captioner's weights must be finite numbers, got NaN or infinity in `{name}`"
    if not pixels.isfinite().all():
        return "`pixel_values` must be finite numbers, got NaN or infinity; are `image_mean` and `image_std` right?"
    return (
        f"the captioner's scores must be finite numbers, got NaN or infinity in {model.dtype} from finite weights; a "
        "larger type of numbers (`dtype`) may hold them"
    )


class ImageCaptioningPipeline(Pipeline):
    """
    Captions images with any captioner and returns a confidence for each caption and token.

        captioner = pipeline("image-captioning", model="folder or Hub name", trust_remote_code=True)
        captioner("photo.jpg", num_beams=3)

    Attributes:
        precision: how the vision model runs, by the `dtype` given to `pipeline()`: `"auto"`, the default, computes
            with the numbers that were saved, in the way that is fastest; `"float32"` gives bit for bit what the
            model's own modules do; `"bfloat16"` is faster where a processor has it, and says something else of some
            images.
        named_options: turns the name of a search, and options that are not `generate()`'s own, into what `generate()`
            takes; `hf_captioner` puts it here when it is imported. This file, which is loaded from the Hub where the
            package is not, knows no searches by name.

    Examples:
        >>> import hf_captioner
        >>> from transformers import pipeline
        >>> from hf_captioner.data import shapes_dataset
        >>> captioner = pipeline("image-captioning")  # the one in the box; model="a folder or a Hub name"
        >>> results = captioner(shapes_dataset(2)["image"], num_beams=3)  # or "photo.jpg", a list of paths...
        >>> len(results), sorted(results[0][0])
        (2, ['familiarity', 'generated_text', 'score', 'tokens'])
        >>> [caption] = captioner(shapes_dataset(1)[0]["image"], attention=True)
        >>> len(caption["attention"]) == len(caption["tokens"])
        True
    """

    named_options: ClassVar[Callable[..., dict[str, Any]] | None] = None

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, model: PreTrainedModel, *args, **kwargs):
        self.precision = choose_precision(asked_dtype(model))
        super().__init__(model, *args, **kwargs)

    def __call__(self, images: Any, **kwargs) -> Any:
        """
        Args:
            images: a path, a URL (which is fetched), base64 text, or an image, array or tensor that [`to_rgb`] takes;
                or a list, a tuple or a column of a `datasets.Dataset` of these. For a torch data set or a generator an
                iterator is returned, which reads images as it goes.
            prompt: text that every caption begins with.
            attention: whether to return attention maps.
            batch_size: images at a time, 1 by default.
            timeout: seconds that fetching a URL may take, 30 by default. It may have 64 MiB and lead five times to
                another address.
            on_bad_image: with `"error"`, the default, an image that cannot be read raises, as pipelines do; with
                `"skip"` its result is `[{"error": why}]`, and the others have their captions.
            decoding: how captions are searched for: the name of a search of `hf_captioner.decoding` where that package
                is imported ("diverse", "constrained", "stochastic", "ensemble", "mbr", "rerank"), or a callable for
                `generate(custom_generate=...)`, which is given the images (PIL) if it has a parameter `images`. By
                default greedy search, beam search or sampling, as the options below say.
            generate_kwargs: options of `generate()` as a dictionary; they may also be given as keyword arguments, such
                as `num_beams`, `do_sample`, `num_return_sequences` or `max_new_tokens`. Defaults are those of the
                model's generation configuration, then those given to `pipeline()`. Where `hf_captioner` is imported
                also the options of its searches and its rules about words (`hf_captioner.decoding.
                generation_options`): `num_beam_groups`, `force_words`, `max_words`...

        Returns:
            for one image a list of `num_return_sequences` dictionaries, for several images a list of such lists:
            `generated_text`; `score`, the geometric mean of the tokens' probabilities, in (0, 1]; `tokens`, with one
            dictionary per generated token (EOS included, prompt excluded): its text as `token` and, as `probability`,
            the model's probability of it given the tokens before it, before any changes by beam search, temperature or
            suppressed tokens, but calibrated by `score_temperature` of the model's configuration. If the model has
            statistics of known images, `familiarity` in (0, 1]: 1 for images like those that it was made for, near 0
            for those of another kind. The score is multiplied by it, and a caption whose score is below `min_score`
            of the configuration should rather not be shown. With `decoding`, `search_score`, by which that search
            ranks (its documentation says what it is), if it has scores; with `attention=True`, `attention`
            (tokens, h, w), the weights of the last layer over the grid of regions, averaged over heads. Probabilities
            and attention are this captioner's, whatever the search asked besides.

        Raises:
            ValueError: if an image cannot be read (the message has its place in the list and its name), attention is
                requested from a model without attention, there is no search of that name or it does not use an
                option, or the model's scores are no numbers (NaN), as of broken weights.
            TypeError: if an image is of an unknown kind.
        """
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
            # Image by image: a list of a data set's column would decode all images at once.
            return list(super().__call__(_NumberedImages(images), **kwargs)) if len(images) else []
        if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
            images = _NumberedImages(images)
        elif isinstance(images, GeneratorType):
            images = (_Numbered(place, image) for place, image in enumerate(images))
        return super().__call__(images, **kwargs)

    def _sanitize_parameters(
        self,
        prompt=None,
        timeout=None,
        on_bad_image=None,
        attention=None,
        decoding=None,
        generate_kwargs=None,
        **options,
    ):
        if on_bad_image not in (None, "error", "skip"):
            raise ValueError(f"`on_bad_image` must be error or skip, got {on_bad_image!r}")
        options = {**(generate_kwargs or {}), **options}
        if decoding is not None:
            options["decoding"] = decoding
        if not hasattr(self, "given"):  # to `pipeline()`
            self.given = options
        generate_kwargs = self._generate_kwargs(**{**self.given, **options}) if options else None
        # What is left out of a call must not override what was given to `pipeline()`.
        preprocess = {"prompt": prompt, "timeout": timeout, "on_bad_image": on_bad_image}
        forward = {"attention": attention, "generate_kwargs": generate_kwargs}
        preprocess, forward = (
            {name: value for name, value in part.items() if value is not None} for part in (preprocess, forward)
        )
        if generate_kwargs is not None:
            preprocess["keep_image"] = needs_images(generate_kwargs.get("custom_generate"))
        return preprocess, forward, {}

    def _generate_kwargs(self, decoding=None, **options) -> dict[str, Any]:
        if self.named_options is not None:
            own = self.model.generation_config.num_beams
            return self.named_options(decoding, options, self.processor, own, self.device)
        if isinstance(decoding, str):
            raise ValueError(
                "`decoding` must be a callable where the package hf_captioner is not imported, which knows searches "
                f"by name (pip install hf_captioner; import hf_captioner), got {decoding!r}"
            )
        return options if decoding is None else {**options, "custom_generate": decoding}

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess_params: dict[str, Any], *params: Any
    ) -> Any:
        """As in transformers; but images of a known number are read ahead while the model computes."""
        if isinstance(inputs, _NumberedImages) and not num_workers and len(inputs) > 1:
            inputs = _ahead(partial(self.preprocess, **preprocess_params), inputs, THREADS + 2 * batch_size)
            preprocess_params = {}
        return super().get_iterator(inputs, num_workers, batch_size, preprocess_params, *params)

    def preprocess(
        self,
        image: Any,
        prompt: str = "",
        timeout: float | None = None,
        keep_image: bool = False,
        on_bad_image: str = "error",
    ) -> BatchFeature:
        if isinstance(image, Future):  # that is this function's result
            return image.result()
        place, image = image if isinstance(image, _Numbered) else (None, image)
        bad = None
        try:
            if isinstance(image, Exception):
                raise image
            opened = open_image(image, timeout) if isinstance(image, (str, PathLike)) else image
            picture = to_rgb(opened)
        except Exception as error:  # decoders raise whatever they like: SyntaxError, struct.error, IndexError...
            bad = _named(error, place, image)
            if on_bad_image == "error":
                unknown = isinstance(error, TypeError) and not isinstance(image, (str, PathLike, Image.Image))
                raise (TypeError if unknown else ValueError)(bad) from error
            picture = Image.new("RGB", (1, 1))  # goes through the model in its place, so that batches stay whole
        inputs = self.processor(images=picture, text=prompt, return_tensors="pt")
        if keep_image:
            inputs["images"] = [picture]
        if on_bad_image == "skip":
            inputs["error"] = bad
        return inputs

    def _forward(self, inputs, attention=False, generate_kwargs=None):
        model = self.model
        pixels = inputs["pixel_values"].to(model.dtype)
        prompt = inputs["decoder_input_ids"]
        if attention and not model.config.attends:
            raise ValueError(f"`attention` needs a model that attends, got {model.config.describe()}")
        options = dict(generate_kwargs or {})
        search = options.get("custom_generate")
        if needs_images(search):
            images = inputs["images"]  # of a batch there are lists in a list
            options["images"] = [each for one in images for each in (one if isinstance(one, list) else [one])]
        encoder_outputs = self.precision.encode(model, pixels)
        if not encoder_outputs.last_hidden_state.isfinite().all():
            raise ValueError(_why_not_finite(model, pixels))
        options |= {"return_dict_in_generate": search is not None, "output_scores": search is not None}
        try:
            found = model.generate(encoder_outputs=encoder_outputs, decoder_input_ids=prompt, **options)
        except RuntimeError as error:  # torch's, of samples from probabilities that are no numbers
            if _broken_weights(model) is None:
                raise
            raise ValueError(_why_not_finite(model, pixels)) from error
        sequences = found if isinstance(found, torch.Tensor) else found.sequences  # (N, S), N = B * k
        length = sequences.shape[1] - prompt.shape[1]
        # A second forward pass over the generated tokens gives the model's own probabilities; the scores of
        # `generate()` are changed by beam search, temperature and suppressed tokens.
        reading = model(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=sequences[:, :-1],
            logits_to_keep=length,
            output_attentions=attention,
            use_cache=False,
        )
        log_probabilities = token_log_probabilities(
            reading.logits, sequences[:, -length:], model.config.score_temperature
        )
        if not log_probabilities.isfinite().all():
            raise ValueError(_why_not_finite(model, pixels))
        outputs = {"sequences": sequences, "log_probabilities": log_probabilities}
        if model.familiarity is not None:
            outputs["familiarity"] = model.familiarity(encoder_outputs.last_hidden_state)
        search_scores = getattr(found, "sequences_scores", None)
        if search_scores is not None:
            outputs["search_scores"] = search_scores
        if attention:
            weights = reading.cross_attentions[-1].mean(1)[:, -length:, model.vision_encoder.num_prefix_regions :]
            outputs["attention"] = weights.unflatten(-1, encoder_outputs.grid)
        outputs = {name: tensor.unflatten(0, (len(pixels), -1)) for name, tensor in outputs.items()}  # (B, k, ...)
        return {**outputs, "error": inputs["error"]} if "error" in inputs else outputs

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        if outputs.get("error") is not None:
            return [{"error": outputs["error"]}]
        config, tokenizer = self.model.config, self.processor.tokenizer
        captions = []
        for row, (ids, logs) in enumerate(zip(outputs["sequences"][0], outputs["log_probabilities"][0], strict=True)):
            generated = ids[-len(logs) :]
            real = ~self.model.ends_before(generated)
            if config.pad_token_id is not None:
                real &= generated != config.pad_token_id
            probabilities = logs[real].exp().tolist()
            texts = token_texts(tokenizer, generated[real].tolist())
            captions.append(
                {
                    "generated_text": tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    "score": logs[real].mean().exp().item(),
                    "tokens": [
                        {"token": text, "probability": probability}
                        for text, probability in zip(texts, probabilities, strict=True)
                    ],
                }
            )
            if "familiarity" in outputs:
                captions[-1]["familiarity"] = outputs["familiarity"][0, 0].item()
                captions[-1]["score"] *= captions[-1]["familiarity"]
            if "search_scores" in outputs:
                captions[-1]["search_score"] = outputs["search_scores"][0, row].item()
            if "attention" in outputs:
                captions[-1]["attention"] = outputs["attention"][0, row, real]
        return captions

    def save_pretrained(self, save_directory: str | PathLike, **kwargs) -> None:
        """As in transformers, which does not save the processor; here it is saved, too."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _named(error: Exception, place: int | None, image: Any) -> str:
    """What is wrong, with the image's place in a list and the name of its file as far as there are any."""
    where = "the image" if place is None else f"`images[{place}]`"
    reason = why_unreadable(error)
    if isinstance(image, (str, PathLike)):
        name = fspath(image)
    else:
        name = getattr(image, "filename", "")
    if name and repr(name)[:200] not in reason:
        where += f", {str(name)[:200]!r},"
    return f"{where} cannot be read: {reason}"


__all__ = ["ImageCaptioningPipeline"]
