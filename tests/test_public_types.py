"""Everything public is annotated, so that `make test`'s type checker and editors know it."""

import importlib
import inspect

import pytest

ROOMS = ("hf_captioner", "hf_captioner.data", "hf_captioner.metrics", "hf_captioner.trainers", "hf_captioner.explain")
PUBLIC = [(room, name) for room in ROOMS for name in importlib.import_module(room).__all__]
# Files of models/ that are annotated like the other rooms; the rest of models/ has a test of its own.
PROCESSING = [f"hf_captioner.models.{name}_captioner" for name in ("image_processing", "processing", "tokenization")]


def own_functions(value) -> list:
    """A function, or the public methods of a class that are written in this package."""
    if inspect.isfunction(value):
        return [value]
    if not inspect.isclass(value):
        return []
    found = []
    for base in value.__mro__:
        if not base.__module__.startswith("hf_captioner"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            # Functions that a decorator made (a dataclass's `__init__`) belong to their fields.
            if (
                inspect.isfunction(function)
                and function.__module__ == base.__module__
                and function.__code__.co_filename != "<string>"
            ):
                found.append(function)
    return found


def unannotated(function) -> list[str]:
    signature = inspect.signature(function)
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty
        and parameter.name not in ("self", "cls")
        and parameter.kind not in free
    ]
    if signature.return_annotation is signature.empty and function.__name__ != "__init__":
        missing.append("return")
    return missing


def missing_of(names: list[tuple[str, str]], core: bool) -> list[str]:
    found = set()
    for room, name in names:
        for function in own_functions(getattr(importlib.import_module(room), name)):
            module = function.__module__
            of_core = module.startswith("hf_captioner.models.") and module not in PROCESSING
            if of_core is core and unannotated(function):
                found.add(f"{function.__module__}.{function.__qualname__}: {', '.join(unannotated(function))}")
    return sorted(found)


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_annotated(room):
    assert not missing_of([pair for pair in PUBLIC if pair[0] == room], core=False)


def test_models_are_annotated():
    assert not missing_of(PUBLIC, core=True)
