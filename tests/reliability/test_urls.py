"""Addresses given to the pipeline: fetched within limits of time, size and redirects, whatever the server does."""

import io
import socket
import threading
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from testing.tiny_models import tiny_model
from transformers import pipeline

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.models import url_captioner
from hf_captioner.models.url_captioner import MOST_BYTES, download


def picture() -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server():
    """`server(answer)` gives an address; `answer(connection, request)` is called with every connection to it."""
    listening = []

    def start(answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection):
            with connection:
                try:
                    answer(connection, connection.recv(10000).decode("latin-1"))
                except OSError:  # the other side has gone
                    pass

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listening:
        listener.close()


def head(length: int | str, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n".encode()


@pytest.fixture(scope="module")
def pipe():
    processor = CaptionerProcessor(
        CaptionerImageProcessor(size={"height": 32, "width": 32}), train_tokenizer(["a dog"], vocab_size=40)
    )
    return pipeline("image-captioning", model=tiny_model(), processor=processor, device="cpu", max_new_tokens=4)


def test_an_image_is_fetched(server, pipe):
    content = picture()
    address = server(lambda connection, _: connection.sendall(head(len(content)) + content))
    expected = pipe(Image.open(io.BytesIO(content)))
    assert pipe(f"{address}/a.png")[0]["generated_text"] == expected[0]["generated_text"]


def drip(connection, _):
    """The head at once, then a byte of the picture at a time."""
    connection.sendall(head(1000))
    for byte in picture()[:1000]:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def drip_head(connection, _):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-More: more\r\n")
        time.sleep(0.05)


def hang(connection, _):
    time.sleep(20)


def stop_in_the_middle(connection, _):
    connection.sendall(head(1000) + picture()[:500])
    time.sleep(20)


@pytest.mark.parametrize("answer", [drip, drip_head, hang, stop_in_the_middle])
def test_the_time_is_for_everything_together(server, pipe, answer):
    address = server(answer)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"a URL must answer within 0\.4 seconds, got 'http://127.*/a\.png'"):
        pipe(f"{address}/a.png", timeout=0.4)
    assert time.monotonic() - start < 2


def test_there_is_a_time_out_without_being_asked_for(server, pipe, monkeypatch):
    assert url_captioner.TIMEOUT == 30
    monkeypatch.setattr(url_captioner, "TIMEOUT", 0.4)
    address = server(drip)
    with pytest.raises(ValueError, match="within 0.4 seconds"):
        pipe([f"{address}/a.png"])
    with pytest.raises(ValueError, match="within 0.4 seconds"):
        pipe.processor.image_processor(f"{address}/a.png")


@pytest.mark.parametrize("length", ["Content-Length: 2147483648\r\n", ""])
def test_a_body_without_end_is_not_taken_in(server, monkeypatch, length):
    assert MOST_BYTES == 64 * 2**20
    monkeypatch.setattr(url_captioner, "MOST_BYTES", 2**21)
    sent = []

    def flood(connection, _):
        connection.sendall(f"HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n".encode())
        while True:
            sent.append(connection.send(bytes(2**16)))

    address = server(flood)
    tracemalloc.start()
    with pytest.raises(ValueError, match="a URL must have at most 2 MiB, got more from 'http://127"):
        download(address)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * 2**21 and sum(sent) < 32 * 2**20


def test_redirects_are_few_and_stay_on_the_web(server, tmp_path):
    content, asked = picture(), []

    def follow(connection, request):
        step = int(request.split()[1].strip("/"))
        asked.append(step)
        if step == 0:
            connection.sendall(head(len(content)) + content)
        else:
            connection.sendall(head(0, "302 Found", f"Location: /{step - 1}\r\n"))

    address = server(follow)
    assert download(f"{address}/4") == content and asked == [4, 3, 2, 1, 0]
    asked.clear()
    with pytest.raises(ValueError, match="a URL must be an address that can be read.*status 302"):
        download(f"{address}/99")
    assert len(asked) <= 6
    (tmp_path / "secret.png").write_bytes(content)
    for elsewhere in (f"file://{tmp_path}/secret.png", "ftp://127.0.0.1/a", "data:image/png;base64,AAAA"):
        location = f"Location: {elsewhere}\r\n"
        away = server(lambda connection, _, more=location: connection.sendall(head(0, "302 Found", more)))
        with pytest.raises(ValueError, match="a URL must be"):
            download(away, timeout=2)


@pytest.mark.parametrize(
    "answer,message",
    [
        (head(0, "404 Not Found"), "status 404"),
        (head(0, "500 Internal Server Error"), "status 500"),
        (b"no http\r\n\r\n", "BadStatusLine"),
        (head(5) + b"words", "cannot identify an image"),
        (head(0), "cannot identify an image"),
        (head(1000) + b"short", "a URL must answer in full, got 5 of 1000 bytes"),
        (b"", "RemoteDisconnected"),
    ],
)
def test_an_answer_that_is_no_image_is_one_line(server, pipe, answer, message):
    address = server(lambda connection, _: connection.sendall(answer))
    with pytest.raises(ValueError, match=message) as raised:
        pipe(f"{address}/a.png")
    assert address in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "address", ["http://", "http://[", "http://127.0.0.1:99999/", "http://a b/", "http://\0", "http://x.invalid/"]
)
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match="a URL must"):
        download(address, timeout=5)


def test_a_long_address_is_not_echoed_whole():
    with pytest.raises(ValueError) as raised:
        download("http://127.0.0.1:9/" + "a" * 100_000)
    assert len(str(raised.value)) < 400


def test_one_bad_address_does_not_take_the_others_along(server, pipe):
    content = picture()
    good = server(lambda connection, _: connection.sendall(head(len(content)) + content))
    bad = server(lambda connection, _: connection.sendall(head(0, "404 Not Found")))
    found = pipe([good, bad, good], batch_size=3, on_bad_image="skip")
    assert found[0] == found[2] and "generated_text" in found[0][0]
    assert list(found[1][0]) == ["error"] and "`images[1]`" in found[1][0]["error"] and bad in found[1][0]["error"]
