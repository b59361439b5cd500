"""`hf-captioner serve`: captions over HTTP."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image
from typer import Option

from ..checkpoints import PHOTOGRAPHS
from ..errors import InputError
from .captioner import MAX_BEAMS, Settings
from .decoding_options import DecodingArguments, with_decoding

MIB = 2**20
LOCAL = ("127.0.0.1", "::1", "localhost")


@with_decoding
def serve(
    model: Annotated[
        str,
        Option(help="Folder or Hub name of a captioner.", show_default="the captioner of photographs in the package"),
    ] = PHOTOGRAPHS,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 for one that is free.")] = 8000,
    num_beams: Annotated[
        int | None, Option(min=1, max=MAX_BEAMS, help="Beams of the search, by default the captioner's own.")
    ] = None,
    prompt: Annotated[str, Option(help="Text that a caption begins with where a request has none.")] = "",
    min_score: Annotated[
        float | None,
        Option(min=0, max=1, help="Abstain where the score is lower, as in `hf-captioner caption`; 0 never abstains."),
    ] = None,
    words: Annotated[bool, Option("--words", help="Give every word's probability in /caption.")] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], Option(help="Type of numbers, as in `hf-captioner caption`.")
    ] = "auto",
    batch_size: Annotated[int, Option(min=1, help="Images that are captioned together at most.")] = 16,
    batch_wait: Annotated[
        float, Option(min=0, max=1000, help="Milliseconds that an image waits for others to be captioned with.")
    ] = 5.0,
    max_waiting: Annotated[
        int, Option(min=1, help="Images that may wait or be worked on; beyond, requests are answered with 503.")
    ] = 64,
    max_images: Annotated[int, Option(min=1, help="Images of a request.")] = 32,
    max_upload: Annotated[float, Option(min=0.001, help="MiB of a request.")] = 20.0,
    max_pixels: Annotated[int, Option(min=1, help="Pixels of an image.")] = 50_000_000,
    api_key: Annotated[
        str | None,
        Option(
            envvar="HF_CAPTIONER_API_KEY",
            show_envvar=True,
            help="Key that clients must send; rather in the environment, where other users do not see it.",
        ),
    ] = None,
    allow_urls: Annotated[
        bool,
        Option("--allow-urls", help="Fetch images from the addresses that clients name, in your own network, too."),
    ] = False,
    *,
    decoding: DecodingArguments,
) -> Callable[[], None]:
    """
    Serve captions over HTTP, to OpenAI's clients as well.

    \b
    hf-captioner serve
    hf-captioner serve --model outputs/quickstart --port 8080 --num-beams 3
    curl -F image=@photo.jpg http://127.0.0.1:8000/caption

    /caption takes an image, a form with several, or base64 in JSON, and answers as `hf-captioner caption` writes its
    JSON lines. /v1/chat/completions and /v1/models are those of OpenAI: the image is a part of the message, as a
    `data:` URI. /health and /metrics (Prometheus) are for those who run it. Images that arrive together are captioned
    together. Nothing is read from this machine's files, and nothing is kept.
    """
    if max_images > max_waiting:
        raise InputError(f"`--max-images` must be at most `--max-waiting` ({max_waiting}), got {max_images}")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise InputError("`--api-key` must be ASCII text without spaces around it, got something else")
    settings = Settings(model, prompt, num_beams, min_score, words, "skip", dtype, decoding)
    return partial(
        serve_captions,
        settings,
        (host, port),
        dict(upload=int(max_upload * MIB), pixels=max_pixels, images=max_images, waiting=max_waiting),
        dict(batch_size=batch_size, batch_wait=batch_wait / 1000, api_key=api_key, allow_urls=allow_urls),
    )


def serve_captions(settings: Settings, address: tuple[str, int], limits: dict, options: dict) -> None:
    """
    Serves until the process is told to stop, and then until all that was asked for is answered.

    Args:
        settings: of the captioner.
        address: host and port.
        limits: fields of [`Limits`].
        options: further arguments of [`CaptionServer`].

    Raises:
        InputError: if the address cannot be listened on, there is no such captioner, or it cannot do what is asked.
    """
    try:
        import uvicorn

        from .connections import configured
        from .server import CaptionServer, Limits, ServedCaptioner
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "hf_captioner":
            raise
        raise InputError(
            f"`hf-captioner serve` must have the package {error.name}: pip install 'hf_captioner[serve]'"
        ) from error
    listener = bound(*address)  # before the captioner is loaded, which takes seconds
    try:
        captioner = ServedCaptioner(settings)
        # What it cannot do is said now and not to the first client; and the first caption takes longer than others.
        list(
            captioner.captions(
                [captioner.pipeline.preprocess(Image.new("RGB", (64, 64)), settings.prompt, None, True)]
            )
        )
        server = CaptionServer(captioner, model_name(settings.model), Limits(**limits), **options)
        config = configured(server)
        listener.listen(config.backlog)  # whoever reads the next line may connect; uvicorn answers when it is ready
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(f"serving {server.name} at http://{shown}:{listener.getsockname()[1]} (Ctrl-C stops)", flush=True)
        if address[0] not in LOCAL and server.api_key is None:
            print("whoever reaches this address can use it; `--api-key` asks for a key", file=sys.stderr)
        # uvicorn repeats the signal when it is through; to be told to stop is no error
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def bound(host: str, port: int) -> socket.socket:
    """
    A socket at an address, which does not listen yet.

    Raises:
        InputError: if it cannot be had.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"`--host` and `--port` must be an address that is free, got {host}:{port} ({reason})"
        ) from error
    return listener


def model_name(model: str) -> str:
    """What clients call it: a folder's name without where it lies, or the name on the Hub."""
    return Path(model).resolve().name if os.path.isdir(model) else model
