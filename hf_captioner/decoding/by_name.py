"""Searches and rules by their names and plain options, as commands and the pipeline are given them."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from ..errors import InputError
from ..metrics import DocumentFrequency
from .bayes import MetricUtility, minimum_bayes_risk
from .constrained import constrained_beam_search
from .diverse import diverse_beam_search
from .models_together import ensemble
from .reranking import ClipScorer, contrastive_reranking
from .rules import MinimumWords, NoBadEnding, NoRepeatedWords, NoUnknownWord, NoWords, WholeWords
from .stochastic import stochastic_beam_search
from .words import WordLimit

SAMPLES = 20  # of minimum Bayes risk

BEAMS = {"num_beams", "length_penalty", "early_stopping"}
SAMPLING = {"temperature", "top_k", "top_p", "typical_p", "min_p", "epsilon_cutoff", "eta_cutoff"}
# what each search reads; None is transformers' own, beams or samples
TAKES: dict[str | None, set[str]] = {
    None: BEAMS | SAMPLING | {"do_sample", "num_return_sequences"},
    "diverse": BEAMS | {"num_return_sequences", "num_beam_groups", "diversity_penalty"},
    "constrained": BEAMS | {"num_return_sequences", "force_words", "force_words_ids"},
    "stochastic": {"num_beams", "num_return_sequences"},
    "ensemble": BEAMS | {"num_return_sequences", "members"},
    "mbr": SAMPLING | {"num_samples", "utility", "utility_frequency"},
    "rerank": BEAMS | SAMPLING | {"num_return_sequences", "num_samples", "reranker"},
}
SEARCHES = tuple(name for name in TAKES if name)
RULES = {"no_bad_ending", "no_repeated_words", "no_unknown_word", "min_words", "max_words", "bad_words"}


def generation_options(
    decoding: str | Callable | None,
    options: Mapping[str, Any],
    processor: ProcessorMixin,
    num_beams: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """
    Options of `generate()` for a search, and rules about words, that are named. The searches are described where they
    are written; `docs/decoding.md` says what each is for.

    Args:
        decoding: `"diverse"`, `"constrained"`, `"stochastic"`, `"ensemble"`, `"mbr"` or `"rerank"`; a callable, which
            is given all options but the rules as they are; or `None` for transformers' own search.
        options: what the search reads (`TAKES`), rules (`RULES`), and any other options of `generate()`:

            - `num_beams`, `num_return_sequences`, `length_penalty`, `early_stopping`, options of sampling: as in
              transformers.
            - `num_beam_groups`, by default one a beam, and `diversity_penalty`: of `"diverse"`, whose beams are by
              default as many as its groups.
            - `force_words`: of `"constrained"`. Phrases, as a list or with commas between them; `"dog|dogs"` is one of
              these.
            - `members`: of `"ensemble"`. Folders or names of the other captioners, as a list or with commas.
            - `num_samples`: of `"mbr"`, 20 by default, and of `"rerank"`, which has beams by default.
            - `utility`: of `"mbr"`. A name for [`MetricUtility`], `"cider_d"` by default, or a function;
              `utility_frequency`: a file that `DocumentFrequency.save` wrote, for CIDEr.
            - `reranker`: of `"rerank"`. The folder of a CLIP model.
            - `no_bad_ending`, `no_repeated_words` (no three words twice), `no_unknown_word`: `True`. `min_words`,
              `max_words`: numbers of words, not tokens. `bad_words`: as `force_words`.
        processor: of the captioner.
        num_beams: of the captioner's own generation configuration.
        device: where models that help run.

    Returns:
        options of `generate()`, `custom_generate` among them. If that has a parameter `images`, it must be given the
        images, as PIL images.

    Raises:
        InputError: if the search is unknown, an option is one that it ignores, or a value breaks a rule.

    Examples:
        >>> from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
        >>> from hf_captioner.decoding import generation_options
        >>> processor = CaptionerProcessor(CaptionerImageProcessor(), train_tokenizer(["a dog runs"]))
        >>> options = generation_options("diverse", {"num_beam_groups": 3, "max_words": 8}, processor)
        >>> options["custom_generate"].__name__, options["num_beams"], len(options["logits_processor"])
        ('diverse_beam_search', 3, 1)
    """
    ours = set.union(*TAKES.values(), RULES)
    given = {
        name: value
        for name, value in options.items()
        if not (name in ours and value is None) and not (name in RULES and value is False)
    }
    tokenizer = processor.tokenizer
    rules = word_rules(tokenizer, {name: given.pop(name) for name in RULES if name in given})
    if isinstance(decoding, str) or decoding is None:
        if decoding not in TAKES:
            raise InputError(f"`decoding` must be one of {', '.join(SEARCHES)}; got {decoding!r}")
        refuse_ignored(decoding, given)
        if decoding is not None:
            more = _OPTIONS[decoding](given, processor, num_beams or 1, device)
            rules += more.pop("rules", [])
            given |= more
    else:
        given["custom_generate"] = decoding
    if rules:
        given["logits_processor"] = LogitsProcessorList([*given.get("logits_processor", []), *rules])
    return given


def refuse_ignored(decoding: str | None, given: Mapping[str, Any]) -> None:
    """
    Raises:
        InputError: if an option belongs to other searches than this one.
    """
    for name, value in given.items():
        readers = [search for search, takes in TAKES.items() if name in takes]
        if not readers or decoding in readers:
            continue
        if decoding is None:
            raise InputError(f"`{name}` must be given with `decoding` {' or '.join(map(str, readers))}, got {value!r}")
        raise InputError(f"`{name}` must be left out with `decoding` {decoding}, which ignores it, got {value!r}")


def word_rules(tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> list[LogitsProcessor]:
    """Logits processors of the `RULES` that are given."""
    if given.get("min_words", 0) > given.get("max_words", float("inf")):
        raise InputError(f"`min_words` must be at most `max_words`, {given['max_words']}, got {given['min_words']}")
    made: dict[str, Callable[[Any], LogitsProcessor]] = {
        "no_bad_ending": lambda value: NoBadEnding(tokenizer),
        "no_repeated_words": lambda value: NoRepeatedWords(tokenizer),
        "no_unknown_word": lambda value: NoUnknownWord(tokenizer),
        "min_words": partial(MinimumWords, tokenizer),
        "max_words": partial(WordLimit, tokenizer),
        "bad_words": lambda value: NoWords(tokenizer, as_list("bad_words", value)),
    }
    return [make(given[name]) for name, make in made.items() if name in given]


def as_list(name: str, value: str | Sequence[str]) -> list[str]:
    """`"a dog, frisbee"` -> `["a dog", "frisbee"]`"""
    parts = [part.strip() for part in (value.split(",") if isinstance(value, str) else value)]
    if not parts or not all(parts):
        raise InputError(f"`{name}` must be texts with commas between them, none of them empty, got {value!r}")
    return parts


def _diverse(given: dict, processor, num_beams: int, device) -> dict[str, Any]:
    beams = given.get("num_beams") or given.get("num_beam_groups") or num_beams
    return {
        "custom_generate": diverse_beam_search,
        "do_sample": False,
        "num_beams": beams,
        "num_beam_groups": given.get("num_beam_groups") or beams,
    }


def _constrained(given: dict, processor, num_beams: int, device) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    found: dict[str, Any] = {"custom_generate": constrained_beam_search, "do_sample": False}
    if "force_words" not in given:
        return found
    if "force_words_ids" in given:
        raise InputError("`force_words` must be left out with `force_words_ids`, got both")
    groups = []
    for phrase in as_list("force_words", given.pop("force_words")):
        groups.append([tokenizer(text.strip(), add_special_tokens=False)["input_ids"] for text in phrase.split("|")])
        for row, text in zip(groups[-1], phrase.split("|"), strict=True):
            if not row or tokenizer.unk_token_id in row:
                raise InputError(f"`force_words` must be words that the captioner knows, got {text.strip()!r}")
    rule = WholeWords(tokenizer, [row for group in groups for row in group])
    return {**found, "force_words_ids": groups, "rules": [rule]}


def _ensemble(given: dict, processor, num_beams: int, device) -> dict[str, Any]:
    if "members" not in given:
        raise InputError("`members` must be the folders of the other captioners, got none")
    folders = as_list("members", given.pop("members"))
    members = [_member(folder, str(device)) for folder in folders]
    words = processor.tokenizer.get_vocab()
    for folder, (_, other) in zip(folders, members, strict=True):
        if other.tokenizer.get_vocab() != words:
            raise InputError(f"`members` must have the captioner's vocabulary, got {folder} with another")
    return {"custom_generate": ensemble_of_images, "do_sample": False, "members": members}


@lru_cache(maxsize=4)
def _member(folder: str, device: str) -> tuple:
    try:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        return model.to(device).eval(), AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"`members` must be folders or names of captioners, got {folder!r}: {error}") from error


def ensemble_of_images(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    members: Sequence = (),
    images: Sequence = (),
    **model_kwargs,
):
    """[`ensemble`] with pairs of a captioner and its processor, which makes its pixels of `images` (B PIL images)."""
    pixels = [processor(images=list(images), return_tensors="pt")["pixel_values"] for _, processor in members]
    return ensemble(
        model,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        members=[member for member, _ in members],
        member_pixel_values=[each.to(input_ids.device) for each in pixels],
        **model_kwargs,
    )


def _samples(given: dict, count: int) -> dict[str, Any]:
    """Options of sampling; by default from the captioner's own probabilities, all of them."""
    if count < 1:
        raise InputError(f"`num_samples` must be at least 1, got {count}")
    return {"do_sample": True, "num_beams": 1, "num_return_sequences": count, "top_k": given.get("top_k", 0)}


def _mbr(given: dict, processor, num_beams: int, device) -> dict[str, Any]:
    utility, frequency = given.pop("utility", "cider_d"), given.pop("utility_frequency", None)
    if isinstance(utility, str):
        utility = MetricUtility(processor.tokenizer, utility, None if frequency is None else _frequency(frequency))
    elif frequency is not None:
        raise InputError(f"`utility_frequency` must be left out with a function as `utility`, got {frequency!r}")
    return {
        "custom_generate": minimum_bayes_risk,
        "utility": utility,
        **_samples(given, given.pop("num_samples", SAMPLES)),
    }


def _frequency(path: str | os.PathLike) -> DocumentFrequency:
    try:
        return DocumentFrequency.load(path)
    except (OSError, ValueError) as error:
        raise InputError(f"`utility_frequency` must be a file of document frequencies, got {path}: {error}") from error


def _rerank(given: dict, processor, num_beams: int, device) -> dict[str, Any]:
    if "reranker" not in given:
        raise InputError("`reranker` must be the folder of a CLIP model, got none")
    samples = given.pop("num_samples", None)
    ignored = SAMPLING if samples is None else BEAMS
    for name in ignored & given.keys():
        kind = "without" if samples is None else "with"
        raise InputError(f"`{name}` must be left out {kind} `num_samples`, got {given[name]!r}")
    scorer = _clip(os.fspath(given.pop("reranker")), processor.tokenizer, str(device))
    found = {"custom_generate": contrastive_reranking, "scorer": scorer}
    found["num_best"] = given.pop("num_return_sequences", 1)
    if samples is not None:
        return {**found, **_samples(given, samples)}
    return {**found, "do_sample": False, "num_return_sequences": given.get("num_beams") or num_beams}


@lru_cache(maxsize=1)
def _clip(folder: str, tokenizer, device: str) -> ClipScorer:
    return ClipScorer(folder, tokenizer, device)


def _stochastic(given: dict, processor, num_beams: int, device) -> dict[str, Any]:
    return {"custom_generate": stochastic_beam_search, "do_sample": False}


_OPTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "diverse": _diverse,
    "constrained": _constrained,
    "stochastic": _stochastic,
    "ensemble": _ensemble,
    "mbr": _mbr,
    "rerank": _rerank,
}
