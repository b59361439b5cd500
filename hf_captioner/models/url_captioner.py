"""Fetches an image from an address, within limits of time and size that hold whatever the server does."""

import io
import ssl
import time
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.error import HTTPError
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

TIMEOUT = 30.0  # seconds for the whole download
MOST_BYTES = 64 * 2**20
MOST_REDIRECTS = 5


class _UntilDeadline(io.RawIOBase):
    """
    What a socket reads until a moment. A time-out of the socket is one for every single read: a server that sends one
    byte after the other would keep us as long as it likes.
    """

    def __init__(self, raw: io.RawIOBase, sock, end: float):
        self.raw, self.sock, self.end = raw, sock, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int | None:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.sock.settimeout(left)
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock, *args, end: float, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_UntilDeadline(sock.makefile("rb", buffering=0), sock, end))


class _Http(HTTPHandler):
    def __init__(self, end: float):
        super().__init__()
        self.end = end

    def http_open(self, request: Request):
        return self.do_open(partial(_connect, HTTPConnection, self.end), request)


class _Https(HTTPSHandler):
    def __init__(self, end: float):
        super().__init__()
        self.end = end

    def https_open(self, request: Request):
        return self.do_open(partial(_connect, HTTPSConnection, self.end, context=_certificates()), request)


def _connect(kind: type[HTTPConnection], end: float, *args, **kwargs) -> HTTPConnection:
    kwargs["timeout"] = max(0.001, end - time.monotonic())
    connection = kind(*args, **kwargs)
    connection.response_class = partial(_Response, end=end)  # type: ignore[assignment]  # called like a class
    return connection


def _certificates() -> ssl.SSLContext:
    """Those of the system, and those that most Python environments bring, for systems where Python finds none."""
    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        return context
    context.load_verify_locations(certifi.where())
    return context


class _Redirects(HTTPRedirectHandler):
    max_redirections = MOST_REDIRECTS

    def redirect_request(self, request, file, code, message, headers, address: str):
        if not address.startswith(("http://", "https://")):  # the base class follows to ftp://, too
            raise ValueError(f"it leads to {address[:200]!r}")
        return super().redirect_request(request, file, code, message, headers, address)


def download(url: str, timeout: float | None = None) -> bytes:
    """
    The content of an address.

    Args:
        url: `http://...` or `https://...`; it leads at most `MOST_REDIRECTS` times to another such address.
        timeout: seconds for everything together, `TIMEOUT` by default.

    Raises:
        ValueError: if the address cannot be read in that time, answers with an error, or has more than `MOST_BYTES`.
    """
    timeout = TIMEOUT if timeout is None else timeout
    end = time.monotonic() + timeout
    shown = url if len(url) <= 200 else url[:200] + "..."
    try:
        opener = build_opener(_Http(end), _Https(end), _Redirects())
        request = Request(url, headers={"User-Agent": "hf_captioner"})
        with opener.open(request, timeout=timeout) as response:
            content = response.read(MOST_BYTES + 1)
            whole = int(response.headers.get("Content-Length") or len(content))
    except TimeoutError as error:
        raise ValueError(f"a URL must answer within {timeout:g} seconds, got {shown!r}") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):  # while it was being connected
            raise ValueError(f"a URL must answer within {timeout:g} seconds, got {shown!r}") from error
        reason = f"status {error.code}" if isinstance(error, HTTPError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"a URL must be an address that can be read, got {shown!r} ({reason})") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"a URL must have at most {MOST_BYTES // 2**20} MiB, got more from {shown!r}")
    if len(content) < whole:
        raise ValueError(f"a URL must answer in full, got {len(content)} of {whole} bytes from {shown!r}")
    return content


__all__ = ["download"]
