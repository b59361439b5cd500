"""A server that runs for long: neither memory nor threads nor file handles grow with the requests."""

import asyncio
import base64
import contextlib
import json
import os
import select
import socket
import time

import httpx
import numpy as np
import pytest
from PIL import Image
from testing import PATIENCE
from testing.held import held_by
from testing.pictures import BAD, GOOD, noise, saved
from testing.serving import served_captioner, serving, serving_apart, tiny_folder
from transformers import pipeline

from hf_captioner.commands import connections
from hf_captioner.commands.server import Limits


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("served") / "tiny")


def test_every_kind_of_picture_from_a_server(model, faults):
    """Good and bad ones in turn, in one request each and many at the same time."""
    pipe = pipeline("image-captioning", model=model, device="cpu")
    expected = dict(zip(GOOD, pipe([Image.fromarray(seen) for _, seen in GOOD.values()]), strict=True))
    names = list(GOOD)
    for place, name in enumerate(BAD):
        names.insert(2 * place + 1, name)
    contents = {**{name: content for name, (content, _) in GOOD.items()}, **BAD}

    async def ask(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as client:
            sent = [client.post(f"{url}/caption", files=[("image", (name, contents[name]))]) for name in names]
            return await asyncio.gather(*sent)

    with serving(served_captioner(model)) as running:
        answers = asyncio.run(ask(running.url))
    rows = {name: json.loads(answer.text) for name, answer in zip(names, answers, strict=True)}
    captioned = {
        name
        for name in GOOD
        if "error" not in rows[name] and rows[name]["score"] == pytest.approx(expected[name][0]["score"], rel=2e-3)
    }
    statuses = dict(zip(names, (answer.status_code for answer in answers), strict=True))
    refused = {name for name in names if statuses[name] == 422 and "\n" not in rows[name].get("error", "\n")}
    faults.count(
        "bad images sent to a server", len(BAD), len(refused & {*BAD}), "status 422 with a reason, no other lost"
    )
    faults.count("unusual images sent to a server", len(GOOD), len(captioned), "the caption of what a person sees")
    assert captioned == {*GOOD} and refused == {*BAD}


def test_clients_that_ask_for_nothing_keep_nobody_away(model, monkeypatch, faults):
    """
    As many as there may be connections: silent ones and those that send the head of a request a byte at a time, some
    of them after an answer. All are closed, and one that has yet to send its body is not.
    """
    monkeypatch.setattr(connections, "HEAD", 3.0)
    monkeypatch.setattr(connections, "CONNECTIONS", 32)
    drip = iter(b"GET /" + b"a" * 10_000)
    with serving(served_captioner(model), Limits(images=8, waiting=8)) as running:
        place = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        patient = socket.create_connection(place, timeout=60)
        patient.sendall(b"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n")
        idle = []
        for number in range(39):
            idle.append(socket.create_connection(place, timeout=60))
            if number % 3 == 0:
                idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += idle[-1].recv(10_000)
                assert b" 200 OK" in answer
        kept_away = httpx.get(f"{running.url}/health").status_code
        left, end = set(idle), time.monotonic() + 60 * PATIENCE
        while left and time.monotonic() < end:
            byte = bytes([next(drip)])
            for client in idle[::2]:
                with contextlib.suppress(OSError):  # closed
                    client.sendall(byte)
            time.sleep(0.1)
            for client in select.select(left, [], [], 0)[0]:
                with contextlib.suppress(ConnectionError):
                    client.recv(10_000)
                left.discard(client)
        answered = httpx.get(f"{running.url}/health").status_code
        patient.sendall(b"no picture at all...")
        refused = patient.recv(10_000)
        for client in (patient, *idle):
            client.close()
    survived = len(idle) - len(left) if answered == 200 else 0
    faults.count("connections that send no request", len(idle), survived, "closed, and others are answered")
    assert kept_away == 503 and answered == 200 and not left
    assert b" 422 " in refused


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc, which tells what a process holds")
def test_nothing_grows_in_five_thousand_requests(model):
    """Of every kind, good and bad, from 16 clients; what is held after 2,000 and 5,000 is what 1,000 had need of."""
    random = np.random.default_rng(0)
    photo = saved(random.integers(0, 256, (480, 640, 3)).astype(np.uint8), "JPEG")
    text = base64.b64encode(photo).decode()
    chat = {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:;base64,{text}"}}]}
        ]
    }
    kinds = [
        dict(url="/caption", content=photo),
        dict(url="/caption", files=[("image", ("a.png", saved(noise()))), ("image", ("b.jpg", BAD["cut.jpg"]))]),
        dict(url="/caption", json={"images": [text, "no image"], "prompt": "one"}),
        dict(url="/v1/chat/completions", json=chat),
        dict(url="/v1/chat/completions", json={**chat, "stream": True}),
        dict(url="/caption", content=BAD["bomb.png"]),
        dict(url="/caption", content=BAD["words.jpg"]),
        dict(url="/caption", content=bytes(2**20 + 1)),  # more than an upload may have
        dict(url="/v1/chat/completions", content=b"{"),
        dict(url="/nowhere", content=b"x"),
    ]
    expected = [200, 200, 200, 200, 200, 422, 422, 413, 400, 404]

    async def ask(url: str, count: int) -> list[tuple[int, int]]:
        """Kinds of requests and the status of their answers."""
        missing, found = iter(range(count)), []

        async def client() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=120) as own:
                for number in missing:
                    kind = number % len(kinds)
                    response = await own.post(**kinds[kind])
                    found.append((kind, response.status_code))
                    if number % 40 == 7:  # leaves before its answer is there
                        try:
                            await own.post("/caption", content=photo, timeout=0.002)
                        except httpx.TimeoutException:
                            pass

        await asyncio.gather(*(client() for _ in range(16)))
        return found

    with serving_apart("--model", model, "--max-upload", "1") as (process, url):
        start, held = time.monotonic(), {}
        for count, more in ((1000, 1000), (2000, 1000), (5000, 3000)):
            answers = asyncio.run(ask(url, more))
            assert len(answers) == more
            wrong = [(kind, status) for kind, status in answers if status != expected[kind]]
            assert not wrong, wrong[:5]
            time.sleep(6)  # idle connections are closed after five seconds
            held[count] = held_by(process.pid)
        print(f"{time.monotonic() - start:.0f} s; MB, threads, handles: {held}")
        counts = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines())
        assert counts["hf_captioner_images_waiting"] == "0"
        process.terminate()
        assert process.wait(60) == 0
    (memory, threads, handles), *later = held.values()
    for memory_then, threads_then, handles_then in later:
        assert memory_then < memory + 20 and threads_then <= threads and handles_then <= handles, held
