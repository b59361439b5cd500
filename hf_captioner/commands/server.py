"""The server of `hf-captioner serve`: a captioner behind HTTP, which answers with captions and reads no file."""

import asyncio
import hmac
import json
import math
import os
import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..errors import InputError, brief
from ..models.url_captioner import download
from .batching import Batcher
from .captioner import Captioner
from .serving_metrics import Count, Now, Spread, exposition
from .uploads import Chat, ImageText, Upload, is_address, read_chat, read_images, read_prompt

READERS = min(4, os.cpu_count() or 1)  # threads that decode images; each may hold a large one
FETCHERS = 8  # threads that fetch addresses, and mostly wait
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
DISCARDED = 64 * 2**20, 5.0  # bytes and seconds of a refused body that are let in, so that the client reads why
MODELS, CHAT, CAPTION, HEALTH, METRICS = "/v1/models", "/v1/chat/completions", "/caption", "/health", "/metrics"

Read = TypeVar("Read")


@dataclass(frozen=True)
class Limits:
    """
    What a request may ask of the server.

    Attributes:
        upload: bytes of a body.
        pixels: of an image.
        images: of a request.
        waiting: images of all requests together that wait or are worked on; a request whose body is being read counts
            as one.
        seconds: that a body may take to arrive.
    """

    upload: int = 20 * 2**20
    pixels: int = 50_000_000
    images: int = 32
    waiting: int = 64
    seconds: float = 60.0


class Refused(Exception):
    """A request that is answered with an error; its message is for the client."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers


class Json(JSONResponse):
    """JSON as UTF-8; half a surrogate pair, which a client may send and UTF-8 does not have, stays as JSON has it."""

    def render(self, content: Any) -> bytes:
        return as_json(content)


def as_json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


class Refusal(Json):
    """
    An error. A connection that is closed before all of a body is read may take the answer along, so what comes after
    the answer is let in and thrown away for a while.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        most, seconds = DISCARDED
        try:
            async with asyncio.timeout(seconds):
                while not scope.get("captioner.read") and most > 0:
                    message = await receive()
                    most -= len(message.get("body", b""))
                    scope["captioner.read"] = not message.get("more_body")
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True)
class Answer:
    """
    What came of an image.

    Attributes:
        row: as `hf-captioner caption` writes it, and the number of `tokens` of a caption and whether it `ended`.
        status: of HTTP: 200, 422 if the image cannot be captioned, 500 for a fault of the server.
    """

    row: dict[str, Any]
    status: int = 200

    def shown(self) -> dict[str, Any]:
        row = {name: value for name, value in self.row.items() if name not in ("tokens", "ended")}
        if "others" in row:
            row["others"] = [Answer(other).shown() for other in row["others"]]
        return row


class ServedCaptioner(Captioner):
    """Counts tokens, too."""

    def scored(self, found: dict) -> dict:
        last = found["tokens"][-1]["token"] if found["tokens"] else None
        return {
            **super().scored(found),
            "tokens": len(found["tokens"]),
            "ended": last == self.tokenizer.eos_token,
        }


class CaptionServer:
    """
    A captioner with its threads, its queue and its counts.

    Args:
        captioner: what captions.
        name: of the captioner.
        limits: of requests.
        batch_size: images that are captioned together.
        batch_wait: seconds that the first of them waits for others.
        api_key: that clients must send, if any.
        allow_urls: whether images are fetched from addresses that clients name.
    """

    def __init__(
        self,
        captioner: ServedCaptioner,
        name: str,
        limits: Limits | None = None,
        batch_size: int = 16,
        batch_wait: float = 0.005,
        api_key: str | None = None,
        allow_urls: bool = False,
    ):
        self.captioner, self.name, self.limits = captioner, name, limits or Limits()
        self.api_key, self.allow_urls = api_key, allow_urls
        self.started = time.time()
        self.waiting = 0  # changed by the event loop alone
        self.requests = Count("Requests answered.", "path", "status")
        self.images = Count("Images by what came of them.", "result")
        self.request_seconds = Spread("Seconds from a request's head to its answer.", SECONDS)
        self.batch_sizes = Spread("Images that were captioned together.", SIZES)
        self.batch_seconds = Spread("Seconds of captioning a batch.", SECONDS)
        self.readers = ThreadPoolExecutor(READERS, "reader")
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetcher")
        self.batcher = Batcher(self._captions, batch_size, batch_wait, prompt_length, self._observe)

    def close(self) -> None:
        """Ends the threads when they are through with what was asked of them."""
        for pool in (self.fetchers, self.readers):
            pool.shutdown()
        self.batcher.close()

    def _captions(self, inputs: list) -> list[dict]:
        return list(self.captioner.captions(inputs))

    def _observe(self, images: int, seconds: float) -> None:
        self.batch_sizes.add(images)
        self.batch_seconds.add(seconds)

    def metrics(self) -> str:
        return exposition(
            {
                "hf_captioner_requests_total": self.requests,
                "hf_captioner_request_seconds": self.request_seconds,
                "hf_captioner_images_total": self.images,
                "hf_captioner_images_waiting": Now("Images that wait or are worked on.", lambda: self.waiting),
                "hf_captioner_batch_images": self.batch_sizes,
                "hf_captioner_batch_seconds": self.batch_seconds,
            }
        )

    @contextmanager
    def admitted(self, images: int = 1) -> Iterator[None]:
        """
        Room for so many images.

        Raises:
            Refused: if there is none.
        """
        if self.waiting + images > self.limits.waiting:
            seconds = self.batch_seconds.sum / max(1, self.batch_sizes.sum) * self.waiting
            raise Refused(
                503,
                f"the server must have room for {images} of at most {self.limits.waiting} waiting images, got "
                f"{self.waiting} already",
                "overloaded",
                {"Retry-After": str(max(1, math.ceil(seconds)))},
            )
        self.waiting += images
        try:
            yield
        finally:
            self.waiting -= images

    async def caption(self, uploads: Sequence[Upload | ImageText], prompt: str | None) -> list[Answer]:
        """What came of each of the images, of which one was admitted already."""
        if len(uploads) > self.limits.images:
            raise Refused(413, f"a request must have at most {self.limits.images} images, got {len(uploads)}")
        with self.admitted(len(uploads) - 1):
            answers = await asyncio.gather(*(self._caption_one(upload, prompt) for upload in uploads))
        for answer in answers:
            abstained = "error" not in answer.row and answer.row["caption"] is None
            self.images.add("error" if answer.status != 200 else "abstained" if abstained else "captioned")
        return answers

    async def _caption_one(self, image: Upload | ImageText, prompt: str | None) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            upload = await self._upload(image)
            inputs = await loop.run_in_executor(self.readers, self.captioner.read, upload, prompt)
        except Exception as error:  # decoders raise whatever they like
            return Answer({"image": image.name, "error": brief(error)}, 422)
        try:
            row = await asyncio.wrap_future(self.batcher.submit(inputs))
        except InputError as error:
            return Answer({"image": image.name, "error": brief(error)}, 422)
        except Exception as error:
            traceback.print_exception(error)
            return Answer({"image": image.name, "error": "the captioner failed; the server's log says why"}, 500)
        return Answer({"image": image.name, **row})

    async def _upload(self, image: Upload | ImageText) -> Upload:
        if isinstance(image, Upload):
            return image
        if not is_address(image.text):
            return Upload(image.name, text=image.text, most_pixels=self.limits.pixels)
        if not self.allow_urls:
            raise InputError(
                "an image must be base64 text or a `data:` URI, got an address, which this server does not fetch "
                "(it would with `--allow-urls`)"
            )
        content = await asyncio.get_running_loop().run_in_executor(self.fetchers, download, image.text)
        return Upload(image.name, content, most_pixels=self.limits.pixels)

    async def read(self, request: Request, reader: Callable[[Request], Awaitable[Read]]) -> Read:
        """
        What a reader makes of a request's body, which is read within the limits of size and time.

        Raises:
            Refused: if the body is too large, too slow or compressed.
            InputError: if the reader finds a mistake.
        """
        length, encoding = request.headers.get("content-length", ""), request.headers.get("content-encoding")
        if encoding not in (None, "identity"):
            raise Refused(415, f"a body must not be compressed, got `Content-Encoding: {encoding[:80]}`")
        if length.isdecimal() and int(length[:20]) > self.limits.upload:
            raise self._too_large(f"{length[:20]} bytes")
        read = 0

        async def receive() -> Message:
            nonlocal read
            message = await request.receive()
            read += len(message.get("body", b""))
            request.scope["captioner.read"] = not message.get("more_body")
            if read > self.limits.upload:
                raise self._too_large("more")
            return message

        try:
            async with asyncio.timeout(self.limits.seconds):
                return await reader(Request(request.scope, receive))
        except TimeoutError:
            seconds = self.limits.seconds
            raise Refused(408, f"a body must arrive within {seconds:g} seconds, got {read} bytes") from None

    def _too_large(self, got: str) -> Refused:
        return Refused(413, f"a body must have at most {self.limits.upload / 2**20:g} MiB, got {got}")

    async def check_key(self, request: Request) -> None:
        """
        Raises:
            Refused: if there is a key and the request does not have it.
        """
        if self.api_key is None:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        given, wanted = key.strip().encode("latin-1"), self.api_key.encode()
        if kind.lower() != "bearer" or not hmac.compare_digest(given, wanted):
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(
                401,
                "a request must have the header `Authorization: Bearer KEY` with the key",
                "invalid_api_key",
                headers,
            )

    async def read_json(self, request: Request) -> Any:
        content = await request.body()
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"a body must be JSON, got {len(content)} bytes ({brief(error, 80)})") from error

    async def read_form(self, request: Request) -> tuple[list[Upload], str | None]:
        parser = MultiPartParser(request.headers, request.stream(), max_files=self.limits.images, max_fields=8)
        parser.spool_max_size = self.limits.upload + 1  # nothing is put on a disk
        try:
            form = await parser.parse()
        except (MultiPartException, FormParserError) as error:
            reason = error.message if isinstance(error, MultiPartException) else brief(error, 80)
            raise InputError(f"a form must be `multipart/form-data` as browsers send it, got: {reason}") from error
        try:
            files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
            pixels = self.limits.pixels
            uploads = [Upload(part.filename or name, await part.read(), most_pixels=pixels) for name, part in files]
        finally:
            await form.close()
        if not uploads:
            raise InputError("a form must have at least one image as a file, got none")
        prompt = form.get("prompt")
        return uploads, read_prompt(prompt) if isinstance(prompt, str) else None

    async def read_captions(self, request: Request) -> tuple[list[Upload] | list[ImageText], str | None, bool]:
        """Images of a request for captions, the prompt, and whether they are a list."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return *await self.read_form(request), True
        if kind == "application/json":
            body = await self.read_json(request)
            return *read_images(body), "images" in body
        content = await request.body()  # of whatever type: curl calls it a form
        prompt = read_prompt(request.query_params.get("prompt"))
        return [Upload("image", content, most_pixels=self.limits.pixels)], prompt, False


def prompt_length(inputs: Any) -> int:
    return inputs["decoder_input_ids"].shape[1]


def caption_routes(server: CaptionServer) -> APIRouter:
    router = APIRouter()

    @router.get(HEALTH)
    async def health() -> Json:
        alive = server.batcher.alive
        return Json({"status": "ok" if alive else "failed", "model": server.name}, 200 if alive else 503)

    @router.get(METRICS, dependencies=[Depends(server.check_key)])
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(server.metrics(), media_type="text/plain; version=0.0.4")

    @router.post(CAPTION, dependencies=[Depends(server.check_key)])
    async def caption(request: Request) -> Response:
        with server.admitted():
            images, prompt, several = await server.read(request, server.read_captions)
            answers = await server.caption(images, prompt)
        worst = max(answer.status for answer in answers)
        status = worst if all(answer.status != 200 for answer in answers) else 200
        if not several:
            return Json(answers[0].shown(), status)
        lines = b"".join(as_json(answer.shown()) + b"\n" for answer in answers)
        return Response(lines, status, media_type="application/x-ndjson")

    return router


def openai_routes(server: CaptionServer) -> APIRouter:
    router = APIRouter(dependencies=[Depends(server.check_key)])
    model = {"id": server.name, "object": "model", "created": int(server.started), "owned_by": "hf_captioner"}

    def check_name(name: str | None) -> None:
        if name not in (None, server.name):
            message = f"`model` must be {server.name}, which is served, got {name[:200]!r}"
            raise Refused(404, message, "model_not_found")

    @router.get(MODELS)
    async def models() -> Json:
        return Json({"object": "list", "data": [model]})

    @router.get(MODELS + "/{name:path}")
    async def one_model(name: str) -> Json:
        check_name(name)
        return Json(model)

    @router.post(CHAT)
    async def chat_completions(request: Request) -> Response:
        with server.admitted():
            body = await server.read(request, server.read_json)
            chat = read_chat(body, server.captioner.settings.decoding.num_return_sequences or 1)
            check_name(chat.model)
            (answer,) = await server.caption([chat.image], chat.prompt)
        if answer.status != 200:
            message = f"`{answer.row['image']}`: {answer.row['error']}"
            if answer.status == 500:
                raise Refused(500, message)
            raise Refused(400, message, "invalid_image")
        completion = Completion(server, chat, answer.row)
        if chat.stream:
            return Response(completion.events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return Json(completion.whole())

    return router


class Completion:
    """
    A caption as OpenAI's chat completion. Where the captioner abstains there is no content, and `refusal` says why.

    Args:
        server: whose captioner it is.
        chat: the request.
        row: the caption with its score, and others.
    """

    def __init__(self, server: CaptionServer, chat: Chat, row: dict[str, Any]):
        self.server, self.chat = server, chat
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": server.name}
        self.rows = [row, *row.get("others", [])][: chat.choices]
        prompt = server.captioner.settings.prompt if chat.prompt is None else chat.prompt
        self.prompt_tokens = len(server.captioner.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    def _message(self, row: dict[str, Any]) -> tuple[dict[str, Any], str, int]:
        """A choice's message without its role, why it ends, and its number of tokens."""
        text, tokens, ended = row["caption"], row["tokens"], row["ended"]
        if text is None:
            least = self.server.captioner.min_score
            why = f"The captioner abstains: its score is {row['score']:.3f}, and must be at least {least:.3f}."
            return {"content": None, "refusal": why}, "stop", tokens
        most = self.chat.most_tokens
        if most is not None and tokens > most:
            tokenizer = self.server.captioner.tokenizer
            ids = tokenizer(text, add_special_tokens=False)["input_ids"][: self.prompt_tokens + most]
            return {"content": tokenizer.decode(ids).strip(), "refusal": None}, "length", most
        return {"content": text, "refusal": None}, "stop" if ended else "length", tokens

    def _usage(self) -> dict[str, int]:
        said = sum(self._message(row)[2] for row in self.rows)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": said,
            "total_tokens": self.prompt_tokens + said,
        }

    def whole(self) -> dict[str, Any]:
        choices = []
        for index, row in enumerate(self.rows):
            message, reason, _ = self._message(row)
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", **message},
                    "logprobs": None,
                    "finish_reason": reason,
                    "score": row["score"],
                }
            )
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    def events(self) -> bytes:
        """The same as server-sent events, one for each word."""
        chunks: list[dict[str, Any]] = []

        def add(choices: list[dict[str, Any]], **more: Any) -> None:
            usage = {"usage": None} if self.chat.usage else {}
            chunks.append({**self.head, "object": "chat.completion.chunk", "choices": choices, **usage, **more})

        for index, row in enumerate(self.rows):
            message, reason, _ = self._message(row)
            deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
            deltas += [{"content": piece} for piece in re.findall(r"\s*\S+", message["content"] or "")]
            deltas += [{"refusal": message["refusal"]}] if message["refusal"] else []
            for delta in deltas:
                add([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            add([{"index": index, "delta": {}, "logprobs": None, "finish_reason": reason, "score": row["score"]}])
        if self.chat.usage:
            add([], usage=self._usage())
        return b"".join(b"data: " + as_json(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def refusal(request: Request, refused: Refused) -> Response:
    """An error in OpenAI's format where their clients read it, and else as a row of captions has it."""
    message: Any = str(refused)
    if request.url.path.startswith("/v1/"):
        kind = "invalid_request_error" if refused.status < 500 else "server_error"
        message = {"message": message, "type": kind, "param": None, "code": refused.code}
    return Refusal({"error": message}, refused.status, refused.headers)


class Counted:
    """Counts and times the requests of an application, by the path of the route, whatever a client may ask for."""

    def __init__(self, app: ASGIApp, server: CaptionServer):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, answered = time.monotonic(), False

        def count(status: int) -> None:
            route = getattr(scope.get("route"), "path", "other")
            self.server.requests.add(route, status)
            self.server.request_seconds.add(time.monotonic() - start)

        async def answer(message: Message) -> None:
            nonlocal answered
            if not answered:  # before the client has it, so that who reads the counts next finds it among them
                answered = True
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            if not answered:
                count(500)


def application(server: CaptionServer) -> FastAPI:
    """
    The server as an ASGI application; when it ends, so do the server's threads.

    There are no pages of documentation: FastAPI's load scripts from elsewhere. `/openapi.json` describes the routes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    title = "hf_captioner"
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Counted, server=server)
    app.include_router(caption_routes(server))
    app.include_router(openai_routes(server))

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusal(request, error)

    @app.exception_handler(InputError)
    async def invalid(request: Request, error: InputError) -> Response:
        return refusal(request, Refused(400, str(error)))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return refusal(request, Refused(error.status_code, message, None, dict(error.headers or {})))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; the number is nginx's

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal(request, Refused(500, "the server failed; its log says why"))

    return app
