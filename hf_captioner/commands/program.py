"""`hf-captioner`, the one console program: finds the command, which reads its own options."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer

from .. import __version__
from ..errors import InputError
from . import run
from .caption import caption
from .convert import convert
from .demo import demo
from .explain import explain_image
from .serve import serve

# command: the file that does it, what it does, and the extra that brings the packages it needs
PASSED_ON = {
    "train": ("train", "Train a captioner on images and captions.", "train"),
    "evaluate": ("evaluate", "Measure a captioner on images and captions.", "train"),
    "calibrate": ("calibrate", "Make its confidence believable, and let it abstain.", "train"),
    "compare": ("compare", "Say whether one captioner is better than another.", "train"),
    "validate-data": ("validate_data", "Find all that is wrong with images and captions.", "train"),
    "card": ("card", "Write the card of a trained captioner.", "train"),
    "export": ("export", "Write a captioner as ONNX, which runs without torch.", "onnx"),
    "site": ("site", "Build a web page that captions in the visitor's browser.", "onnx"),
    "benchmark": ("benchmark", "Time it beside loops and models of others.", "train"),
}

app = typer.Typer(
    add_completion=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),  # both spellings of every option
    },
    help="Train, measure and use image captioners. `hf-captioner COMMAND --help` documents a command, with examples.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


# Every command gives back what is to be done, and `program` does it when typer, which would catch the errors, is
# through with the arguments.


def show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    wanted: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def pass_on(name: str) -> None:
    """Adds a command that reads all of its arguments by itself."""
    module, summary, extra = PASSED_ON[name]

    def command(context: typer.Context) -> Callable[[], None]:
        sys.argv = [f"hf-captioner {name}", *context.args]  # by which its `--help` and its errors call it
        arguments = context.args
        return lambda: load(module, extra).main(arguments)

    app.command(
        name,
        help=summary,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )(command)


def load(module: str, extra: str):
    """A command's file, imported when it is called: most need seconds and packages that the others do not."""
    try:
        return import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "hf_captioner":
            raise
        raise InputError(
            f"`hf-captioner {module}` must have the package {error.name}: pip install 'hf_captioner[{extra}]'"
        ) from error


for _name in PASSED_ON:
    pass_on(_name)
app.command("caption", no_args_is_help=True)(caption)
app.command("convert", no_args_is_help=True)(convert)
app.command("demo")(demo)
app.command("explain", no_args_is_help=True)(explain_image)
app.command("serve")(serve)


def program(argv: list[str]) -> None:
    try:
        work = app(argv, prog_name="hf-captioner", standalone_mode=False)
    except typer.TyperException as error:
        raise InputError(error.format_message()) from None
    if callable(work):
        work()
    elif work:  # typer's own exit status, as of Ctrl-C
        raise SystemExit(work)


def main() -> None:
    run(program)


if __name__ == "__main__":
    main()
