"""Options about how captions are searched for, the same for every command that captions."""

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

from transformers import PreTrainedModel, ProcessorMixin, set_seed
from typer import Option

from ..decoding import generation_options
from ..decoding.by_name import SEARCHES
from ..errors import InputError


@dataclass(kw_only=True)
class DecodingArguments:
    """How captions are searched for, and rules about their words."""

    decoding: str | None = field(
        default=None, metadata={"help": f"the search: {', '.join(SEARCHES)}; beam search by default"}
    )
    num_return_sequences: int | None = field(
        default=None, metadata={"help": "captions of an image, the best first, one by default"}
    )
    num_beam_groups: int | None = field(
        default=None, metadata={"help": "diverse: groups of beams, by default one a beam"}
    )
    diversity_penalty: float | None = field(
        default=None, metadata={"help": "diverse: what a word costs that another group has chosen, 0.5 by default"}
    )
    force_words: str | None = field(
        default=None, metadata={"help": "constrained: what must be said, with commas; dog|dogs is one of these"}
    )
    members: str | None = field(
        default=None, metadata={"help": "ensemble: folders of the other captioners, with commas"}
    )
    num_samples: int | None = field(
        default=None, metadata={"help": "mbr, rerank: samples of an image; 20 by default for mbr, beams for rerank"}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "mbr, rerank: of the samples; below 1 for likelier ones"}
    )
    utility: str | None = field(
        default=None, metadata={"help": "mbr: metric by which samples are compared, cider_d by default"}
    )
    utility_frequency: str | None = field(
        default=None, metadata={"help": "mbr: file of document frequencies for CIDEr (DocumentFrequency.save)"}
    )
    reranker: str | None = field(default=None, metadata={"help": "rerank: folder of a CLIP model"})
    seed: int | None = field(default=None, metadata={"help": "of sampling searches, 0 by default"})
    min_words: int | None = field(default=None, metadata={"help": "least words of a caption"})
    max_words: int | None = field(default=None, metadata={"help": "most words of a caption"})
    bad_words: str | None = field(default=None, metadata={"help": "what must not be said, with commas"})
    no_bad_ending: bool = field(
        default=False, metadata={"help": "no caption ends in a determiner, preposition or conjunction"}
    )
    no_repeated_words: bool = field(default=False, metadata={"help": "no three words twice in a caption"})
    no_unknown_word: bool = field(default=False, metadata={"help": "the unknown word is not said"})

    def settings(self) -> dict[str, Any]:
        """What captions depend on, `None` for what is as by default."""
        values = {option.name: (getattr(self, option.name), option.default) for option in fields(DecodingArguments)}
        return {name: None if value == default else value for name, (value, default) in values.items()}

    def options(
        self, model: PreTrainedModel, processor: ProcessorMixin, process: int = 0, **more: Any
    ) -> dict[str, Any]:
        """
        Options of `generate()`; sampling is seeded.

        Args:
            model, processor: the captioner.
            process: number of this process, which draws other samples than the others.
            more: further options, those that are `None` left out.

        Raises:
            InputError: if the search ignores an option, or a value breaks a rule.
        """
        wanted = asdict(self)
        decoding, seed = wanted.pop("decoding"), wanted.pop("seed")
        wanted |= {name: value for name, value in more.items() if value is not None}
        if self.num_return_sequences is not None and self.num_return_sequences < 1:
            raise InputError(f"`num_return_sequences` must be at least 1, got {self.num_return_sequences}")
        own = model.generation_config.num_beams
        found = generation_options(decoding, wanted, processor, own, model.device)
        samples = decoding == "stochastic" or found.get("do_sample", False)
        for name in ("seed", "temperature"):
            if getattr(self, name) is not None and not samples:
                value = getattr(self, name)
                raise InputError(f"`{name}` must be left out with a search that does not sample, got {value}")
        if samples:
            set_seed((seed or 0) + process)
        wanted_captions, beams = self.num_return_sequences or 1, found.get("num_beams") or own or 1
        if decoding != "rerank" and not found.get("do_sample") and wanted_captions > beams:
            raise InputError(f"`num_return_sequences` must be at most `num_beams` ({beams}), got {wanted_captions}")
        return found


def with_decoding(command: Callable) -> Callable:
    """
    A typer command whose parameter `decoding`, a [`DecodingArguments`], becomes an option for each of its fields.
    """
    hints = get_type_hints(DecodingArguments)
    added = []
    for option in fields(DecodingArguments):
        hint, text = hints[option.name], f"{option.metadata['help']}."
        # a flag without a spelling of its own would have a `--no-...` that takes it back
        spelled = [f"--{option.name.replace('_', '-')}"] if hint is bool else []
        annotation = Annotated[hint, Option(*spelled, help=text)]
        kind = inspect.Parameter.KEYWORD_ONLY
        added.append(inspect.Parameter(option.name, kind, default=option.default, annotation=annotation))

    @wraps(command)
    def with_fields(*args, **kwargs):
        decoding = DecodingArguments(**{each.name: kwargs.pop(each.name) for each in added})
        return command(*args, **kwargs, decoding=decoding)

    own = inspect.signature(command)
    kept = [each for each in own.parameters.values() if each.name != "decoding"]
    with_fields.__signature__ = own.replace(parameters=[*kept, *added])
    with_fields.__annotations__ = {each.name: each.annotation for each in [*kept, *added]}
    return with_fields
