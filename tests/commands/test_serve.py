"""`hf-captioner serve`: captions over HTTP, to every kind of client, and whatever clients send."""

import asyncio
import base64
import http.server
import io
import json
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from testing.pictures import BAD, noise, saved
from testing.serving import served_captioner, serving, serving_apart, tiny_folder
from transformers import pipeline

from hf_captioner.commands import measure_serving
from hf_captioner.commands.program import app, program
from hf_captioner.commands.server import CHAT, Limits
from hf_captioner.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny_folder(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline("image-captioning", model=model, device="cpu")


@pytest.fixture(scope="module")
def captioner(model):
    return served_captioner(model)


@pytest.fixture(scope="module")
def running(captioner):
    with serving(captioner) as found:
        yield found


@pytest.fixture
def client(running):
    with httpx.Client(base_url=running.url, timeout=60) as found:
        yield found


def pictures(count: int) -> list[bytes]:
    """Of another colour and size each."""
    found = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 1 + random.integers(1, 255, 3), (30 + seed % 7, 40, 3)).astype(np.uint8)
        found.append(saved(pixels))
    return found


def uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def chat(content: bytes | str, *after: dict, **options) -> dict:
    url = content if isinstance(content, str) else uri(content)
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": "tiny", "messages": [{"role": "user", "content": parts}, *after], **options}


def lines(response: httpx.Response) -> list[dict]:
    return [json.loads(line) for line in response.text.splitlines()]


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def until_it_says(connection: socket.socket, words: bytes) -> bytes:
    """What a server says up to these words, which may come in parts."""
    connection.settimeout(30)
    said = b""
    while words not in said:
        part = connection.recv(10_000)
        assert part, said
        said += part
    return said


def counted(client: httpx.Client) -> dict[str, float]:
    """The server's counts by name and labels."""
    text = client.get("/metrics").text
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_the_answers_are_the_lines_of_the_command(client, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {f"{place}.png": content for place, content in enumerate(pictures(4))}
    contents["words.jpg"] = b"these are words"
    for name, content in contents.items():
        Path(name).write_bytes(content)
    with pytest.raises(SystemExit):
        program(["caption", *contents, "--model", model, "--output", "out.jsonl"])
    expected = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len({row.get("caption") for row in expected}) > 2, "the images must matter"

    def same(found: list[dict], names: list[str] | None = None) -> None:
        assert len(found) == len(expected)
        for place, (row, other) in enumerate(zip(found, expected, strict=True)):
            assert list(row) == list(other) and row["image"] == (names[place] if names else other["image"])
            assert row.get("caption") == other.get("caption")
            assert row.get("score", 0) == pytest.approx(other.get("score", 0), rel=1e-5)
            assert "error" not in row or row["error"].startswith("cannot identify an image")

    form = client.post("/caption", files=[("any", (name, content)) for name, content in contents.items()])
    assert form.status_code == 200 and form.headers["content-type"] == "application/x-ndjson"
    same(lines(form))
    texts = [uri(content) for content in contents.values()]
    texts[1] = texts[1].partition(",")[2]
    names = [f"images[{place}]" for place in range(5)]
    same(lines(client.post("/caption", json={"images": texts})), names)
    alone = [client.post("/caption", content=content) for content in contents.values()]
    same([response.json() for response in alone], ["image"] * 5)
    assert [response.status_code for response in alone] == [200] * 4 + [422]
    assert client.post("/caption", json={"image": texts[2]}).json() == alone[2].json()
    # what curl calls its bytes does not matter
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/caption", content=contents["0.png"], headers=kind).json() == alone[0].json()


def test_options_are_those_of_the_command(model, pipe):
    contents = pictures(5)
    scores = sorted(pipe(Image.open(io.BytesIO(content)))[0]["score"] for content in contents)
    bound = (scores[1] + scores[2]) / 2
    options = dict(min_score=bound, words=True, num_beams=4, num_return_sequences=3, no_repeated_words=True)
    with serving(served_captioner(model, **options)) as running, httpx.Client(base_url=running.url) as client:
        rows = [client.post("/caption", content=content).json() for content in contents]
        assert counted(client)['hf_captioner_images_total{result="abstained"}'] == sum(
            row["caption"] is None for row in rows
        )
        for content, row in zip(contents, rows, strict=True):
            asked = dict(num_beams=4, num_return_sequences=3, no_repeated_words=True)
            found = pipe(Image.open(io.BytesIO(content)), **asked)
            expected = [None if one["score"] < bound else one["generated_text"] for one in found]
            assert [row["caption"], *(other["caption"] for other in row["others"])] == expected
            assert [list(other) for other in row["others"]] == [["caption", "score"]] * 2
            assert " ".join(word["word"] for word in row["words"]) == found[0]["generated_text"]
        assert {row["caption"] is None for row in rows} == {True, False}
        several = client.post(CHAT, json=chat(contents[0], n=2)).json()["choices"]
        both = [rows[0]["caption"], rows[0]["others"][0]["caption"]]
        assert [choice["message"]["content"] for choice in several] == both
        assert [choice["index"] for choice in several] == [0, 1]
        silent = next(content for content, row in zip(contents, rows, strict=True) if row["caption"] is None)
        (choice,) = client.post(CHAT, json=chat(silent)).json()["choices"]
        assert choice["message"]["content"] is None and choice["finish_reason"] == "stop"
        assert f"must be at least {bound:.3f}" in choice["message"]["refusal"]


def test_a_prompt_begins_the_caption(client, model, pipe):
    content = pictures(3)[2]
    expected = pipe(Image.open(io.BytesIO(content)), prompt="one two")[0]["generated_text"]
    assert expected.startswith("one two")
    for response in (
        client.post("/caption", content=content, params={"prompt": "one two"}),
        client.post("/caption", files={"image": content}, data={"prompt": "one two"}),
        client.post("/caption", json={"image": uri(content), "prompt": "one two"}),
    ):
        assert response.json()["caption"] == expected
    answer = client.post(CHAT, json=chat(content, {"role": "assistant", "content": "one two"})).json()
    assert answer["choices"][0]["message"]["content"] == expected and answer["usage"]["prompt_tokens"] == 2
    with serving(served_captioner(model, prompt="one two")) as other:
        assert httpx.post(f"{other.url}/caption", content=content).json()["caption"] == expected
        emptied = httpx.post(f"{other.url}/caption", json={"image": uri(content), "prompt": ""}).json()
        assert emptied["caption"] == pipe(Image.open(io.BytesIO(content)))[0]["generated_text"]


def test_fifty_clients_at_once(running, client, pipe):
    """Prompts of other lengths and images that are none among them."""
    contents = pictures(46)
    prompts = ["" if place % 4 else "one two" for place in range(46)]
    asked = [(content, prompt) for content, prompt in zip(contents, prompts, strict=True)]
    asked[10:10] = [(content, "") for content in list(BAD.values())[:4]]
    before = counted(client)

    async def everything() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=running.url, timeout=120, limits=limits) as many:
            sent = [many.post("/caption", content=content, params={"prompt": prompt}) for content, prompt in asked]
            return await asyncio.gather(*sent)

    found = asyncio.run(everything())
    assert [response.status_code for response in found] == [200] * 10 + [422] * 4 + [200] * 36
    answers = [response.json() for response in found[:10] + found[14:]]
    for content, prompt, row in zip(contents, prompts, answers, strict=True):
        (expected,) = pipe(Image.open(io.BytesIO(content)), prompt=prompt)
        assert row["caption"] == expected["generated_text"]
        assert row["score"] == pytest.approx(expected["score"], rel=1e-4)
    after = counted(client)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['hf_captioner_images_total{result="captioned"}'] == 46
    assert grown['hf_captioner_images_total{result="error"}'] == 4
    assert grown['hf_captioner_requests_total{path="/caption",status="200"}'] == 46
    assert grown["hf_captioner_batch_images_sum"] == 46
    assert grown["hf_captioner_batch_images_count"] < 40, "they must have been captioned together"
    assert after["hf_captioner_images_waiting"] == 0


def test_a_completion_has_openais_shape(client, pipe):
    """https://platform.openai.com/docs/api-reference/chat/object, by hand."""
    content = pictures(1)[0]
    (expected,) = pipe(Image.open(io.BytesIO(content)))
    found = client.post(CHAT, json=chat(content, temperature=0.2, max_tokens=300, user="u")).json()
    assert set(found) == {"id", "object", "created", "model", "choices", "usage"}
    assert found["id"].startswith("chatcmpl-") and found["object"] == "chat.completion" and found["model"] == "tiny"
    assert abs(found["created"] - time.time()) < 60 and type(found["created"]) is int
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected["generated_text"], "refusal": None}
    assert (choice["index"], choice["logprobs"]) == (0, None)
    ended = expected["tokens"][-1]["token"] == "<eos>"
    assert choice["finish_reason"] == ("stop" if ended else "length")
    assert choice["score"] == pytest.approx(expected["score"], rel=1e-5)
    count = len(expected["tokens"])
    assert found["usage"] == {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
    assert client.post(CHAT, json=chat(content)).json()["id"] != found["id"]


def test_a_caption_is_cut_at_the_most_tokens(client, pipe):
    content = pictures(1)[0]
    caption = pipe(Image.open(io.BytesIO(content)))[0]["generated_text"]
    for name in ("max_tokens", "max_completion_tokens"):
        found = client.post(CHAT, json=chat(content, **{name: 2})).json()
        (choice,) = found["choices"]
        assert choice["message"]["content"] == " ".join(caption.split()[:2]) and choice["finish_reason"] == "length"
        assert found["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_says_the_same_word_by_word(client, usage):
    """https://platform.openai.com/docs/api-reference/chat/streaming"""
    content = pictures(1)[0]
    whole = client.post(CHAT, json=chat(content)).json()
    options = {"stream_options": {"include_usage": True}} if usage else {}
    response = client.post(CHAT, json=chat(content, stream=True, **options))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: ") for event in events[:-1])
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["model"] == "tiny" for chunk in chunks)
    assert all(("usage" in chunk) is usage for chunk in chunks)
    if usage:
        last = chunks.pop()
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    said = "".join(delta.get("content", "") for delta in deltas)
    assert said == whole["choices"][0]["message"]["content"] and len(deltas) == len(said.split()) + 2
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]


def test_models_are_listed(client):
    found = client.get("/v1/models").json()
    assert found["object"] == "list" and [set(one) for one in found["data"]] == [
        {"id", "object", "created", "owned_by"}
    ]
    assert found["data"][0]["id"] == "tiny" and found["data"][0]["object"] == "model"
    assert client.get("/v1/models/tiny").json() == found["data"][0]


@pytest.mark.parametrize(
    "body,status,code,message",
    [
        (chat("AAAA"), 400, "invalid_image", r"`messages\[0\].content\[1\].image_url.url`: cannot identify an image"),
        (chat(uri(b"words")), 400, "invalid_image", "cannot identify an image .* in 5 bytes"),
        (chat("https://example.org/a.png"), 400, "invalid_image", "an address, which this server does not fetch"),
        (chat("AAAA", model="gpt-4o"), 404, "model_not_found", "`model` must be tiny, .*'gpt-4o'"),
        ({"model": "tiny", "messages": []}, 400, None, "`messages` must be a list"),
        (chat("AAAA", n=2), 400, None, "`n` must be"),
        ([], 400, None, "must be an object in JSON"),
    ],
)
def test_errors_have_openais_shape(client, body, status, code, message):
    response = client.post(CHAT, json=body)
    assert response.status_code == status and list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and error["code"] == code and re.search(message, error["message"])


def test_a_large_upload_is_refused_while_it_is_read(running, client):
    large = 50 * 2**20
    before = running.server.requests.value("/caption", 413)
    response = client.post("/caption", content=bytes(large))
    assert response.status_code == 413
    assert response.json() == {"error": f"a body must have at most 20 MiB, got {large} bytes"}
    # the length alone is enough
    with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {large}\r\n\r\n"
        connection.sendall(head.encode())
        answer = until_it_says(connection, b"must have at most 20 MiB")
        assert answer.startswith(b"HTTP/1.1 413 ") and b"invalid_request_error" in answer

    def parts():
        for _ in range(large // 2**16):
            yield bytes(2**16)

    response = client.post("/caption", content=parts())  # without a length
    assert response.status_code == 413 and response.json() == {"error": "a body must have at most 20 MiB, got more"}
    boundary = {"content-type": "multipart/form-data; boundary=x"}

    def form():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        yield from parts()

    assert client.post("/caption", content=form(), headers=boundary).status_code == 413
    assert running.server.requests.value("/caption", 413) == before + 3
    until(lambda: running.server.waiting == 0)


def test_a_client_that_reads_only_at_its_end_hears_why(running):
    """As http.client does: all of the body first."""
    address = ("127.0.0.1", httpx.URL(running.url).port)
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("POST", "/caption", bytes(50 * 2**20))
    response = connection.getresponse()
    assert response.status == 413 and b"at most 20 MiB" in response.read()
    connection.close()


def test_bombs_are_refused_before_they_are_decoded(client):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = saved(Image.new("1", (10_000, 6_000)))
    for content, got in ((BAD["bomb.png"], "more than Pillow opens"), (wide, "10000 x 6000")):
        response = client.post("/caption", content=content)
        assert response.status_code == 422
        assert response.json()["error"] == f"an image must have at most 50,000,000 pixels, got {got}"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100e6


OPENED: list[str] | None = None


def watch(event: str, arguments: tuple) -> None:
    if OPENED is not None and event == "open" and isinstance(arguments[0], (str, bytes)):
        OPENED.append(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode("utf-8", "replace"))


def test_no_path_is_read(client, running, tmp_path):
    """An image lies there, under a name that every trick leads to; it is neither opened nor captioned."""
    global OPENED
    sys.addaudithook(watch)  # stays for ever, and is quiet after this test
    secret = tmp_path / "secret.png"
    secret.write_bytes(saved(noise()))
    names = [
        str(secret),
        f"file://{secret}",
        f"../../../../../../..{secret}",
        "../../etc/passwd",
        "file:///etc/passwd",
    ]
    OPENED = []
    try:
        open(secret, "rb").close()
        assert OPENED == [str(secret)], "opening would be seen"
        OPENED.clear()
        for name in names:
            row = client.post("/caption", json={"image": name}).json()
            assert "must be base64 text or a `data:` URI" in row["error"]
            assert client.post(CHAT, json=chat(name)).status_code == 400
            (row,) = lines(client.post("/caption", files=[("image", (name, b"no image"))]))
            assert row["image"] == name and "cannot identify" in row["error"]
            assert client.post("/caption", content=name.encode()).status_code == 422
            assert client.post("/caption", params={"image": name, "path": name}, content=b"").status_code == 422
            with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port)) as connection:
                connection.sendall(f"GET /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                assert connection.recv(10_000).startswith(b"HTTP/1.1 404 ")
        assert [name for name in OPENED if "secret" in name or "passwd" in name] == []
    finally:
        OPENED = None


def test_nothing_but_its_own_answers(client):
    for path in ("/", "/docs", "/redoc", "/static/a.js", "/caption/..", "/v1", "/%2e%2e/%2e%2e/etc/passwd"):
        assert client.get(path).status_code == 404, path
    assert client.get("/caption").status_code == client.post("/health").status_code == 405
    described = client.get("/openapi.json").text
    assert "http" not in described.replace("HTTP", "") and set(json.loads(described)["paths"]) == {
        "/caption",
        "/health",
        "/metrics",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{name}",
    }
    assert client.get("/health").json() == {"status": "ok", "model": "tiny"}
    assert "server" not in client.get("/health").headers
    # a path of a client's making is no label
    assert not [name for name in counted(client) if "passwd" in name]


def test_addresses_are_fetched_where_that_is_allowed(client, captioner, pipe):
    content, asked = pictures(1)[0], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            good = self.path == "/a.png"
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write(content if good else b"")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        for url in (f"{address}/a.png", f"HTTP{address[4:]}/a.png"):
            assert "which this server does not fetch" in client.post("/caption", json={"image": url}).json()["error"]
            assert client.post(CHAT, json=chat(url)).status_code == 400
        assert asked == []
        with serving(captioner, allow_urls=True) as other, httpx.Client(base_url=other.url, timeout=60) as allowed:
            row = allowed.post("/caption", json={"image": f"{address}/a.png"}).json()
            assert row["caption"] == pipe(Image.open(io.BytesIO(content)))[0]["generated_text"]
            assert allowed.post(CHAT, json=chat(f"{address}/a.png")).status_code == 200
            found = lines(allowed.post("/caption", json={"images": [f"{address}/b.png", f"{address}/a.png", "AAAA"]}))
            assert "status 404" in found[0]["error"] and found[1]["caption"] == row["caption"]
            assert allowed.post("/caption", json={"image": "file:///etc/passwd"}).status_code == 422
    finally:
        server.shutdown()
        server.server_close()


class Held:
    """A captioner that waits until it may go on."""

    def __init__(self, captioner):
        self.captioner, self.may_go = captioner, threading.Event()

    def __getattr__(self, name):
        return getattr(self.captioner, name)

    def captions(self, inputs):
        assert self.may_go.wait(60)
        return self.captioner.captions(inputs)


def test_beyond_the_queue_requests_are_sent_away(captioner):
    held = Held(captioner)
    contents = pictures(6)
    limits = Limits(waiting=4, images=4)
    with serving(held, limits) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        with ThreadPoolExecutor(4) as threads:
            sent = [threads.submit(client.post, "/caption", content=content) for content in contents[:3]]
            until(lambda: running.server.waiting == 3)
            # two do not fit, one does
            refused = client.post("/caption", files=[("a", contents[3]), ("b", contents[4])])
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert refused.json() == {
                "error": "the server must have room for 1 of at most 4 waiting images, got 4 already"
            }
            sent.append(threads.submit(client.post, "/caption", content=contents[3]))
            until(lambda: running.server.waiting == 4)
            refused = client.post(CHAT, json=chat(contents[4]))
            error = refused.json()["error"]
            assert refused.status_code == 503 and (error["type"], error["code"]) == ("server_error", "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/health").status_code == 200 and counted(client)["hf_captioner_images_waiting"] == 4
            held.may_go.set()
            assert [future.result().status_code for future in sent] == [200] * 4
        assert client.post("/caption", content=contents[5]).status_code == 200 and running.server.waiting == 0
        many = client.post("/caption", json={"images": ["AAAA"] * 5})
        assert many.status_code == 413 and many.json()["error"] == "a request must have at most 4 images, got 5"
        form = client.post("/caption", files=[("a", b"no")] * 5)
        assert form.status_code == 400 and "Maximum number of files is 4" in form.json()["error"]


def test_a_slow_body_is_not_waited_for(captioner):
    with serving(captioner, Limits(seconds=0.3)) as running:
        with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port)) as connection:
            connection.sendall(b"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            answer = until_it_says(connection, b"a body must arrive within 0.3 seconds, got 3 bytes")
            assert answer.startswith(b"HTTP/1.1 408 ")
        until(lambda: running.server.waiting == 0)


def test_a_client_that_goes_away_leaves_nothing_behind(captioner):
    with serving(captioner) as running:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port)) as connection:
                connection.sendall(b"POST /caption HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
                until(lambda: running.server.waiting >= 1)
        until(lambda: running.server.waiting == 0)
        assert httpx.post(f"{running.url}/caption", content=pictures(1)[0]).status_code == 200


def test_a_fault_of_the_captioner_is_the_fault_of_one_image(captioner, capsys):
    class Faulty(Held):
        def captions(self, inputs):
            if any(one["pixel_values"].mean() < -1.5 for one in inputs):
                raise RuntimeError("a secret of the machine")
            return self.captioner.captions(inputs)

    contents = [*pictures(3), saved(np.zeros((40, 40, 3), np.uint8))]
    with serving(Faulty(captioner), batch_wait=0.2) as running:
        response = httpx.post(f"{running.url}/caption", files=[("a", content) for content in contents], timeout=60)
        rows = lines(response)
        assert response.status_code == 200 and ["error" in row for row in rows] == [False] * 3 + [True]
        assert rows[3]["error"] == "the captioner failed; the server's log says why"
        assert httpx.post(f"{running.url}/caption", content=contents[3]).status_code == 500
        failed = httpx.post(f"{running.url}{CHAT}", json=chat(contents[3]))
        assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
        assert httpx.get(f"{running.url}/health").status_code == 200
    assert "a secret of the machine" in capsys.readouterr().err


def test_a_key(captioner):
    with serving(captioner, api_key="s3cret") as running, httpx.Client(base_url=running.url) as client:
        content = pictures(1)[0]
        for headers in (
            {},
            {"authorization": "Bearer s3cre"},
            {"authorization": "s3cret"},
            {"authorization": "Bearer é"},
        ):
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            for response in (
                client.post("/caption", content=content, headers=raw),
                client.post(CHAT, json=chat(content), headers=raw),
                client.get("/v1/models", headers=raw),
                client.get("/metrics", headers=raw),
            ):
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
                assert "s3cret" not in response.text
        assert client.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        key = {"authorization": "Bearer s3cret"}
        assert client.post("/caption", content=content, headers=key).status_code == 200
        assert client.post(CHAT, json=chat(content), headers={"Authorization": "bearer s3cret"}).status_code == 200
        assert client.get("/health").status_code == 200


JSON, FORM = {"content-type": "application/json"}, {"content-type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="a"'
ODD = [
    (b"", {}),
    (b"{", JSON),
    (b"", JSON),
    (b"[" * 200_000, JSON),
    (b"1" * 10_000, JSON),
    (b'{"image": NaN}', JSON),
    (b'\xff\xfe{"image": "a"}', JSON),
    (b'{"image": "\\ud800"}', JSON),
    (b'{"image": "", "prompt": "\\ud800"}', JSON),
    (b"abc", {"content-type": "multipart/form-data"}),
    (b"abc", {"content-type": "multipart/form-data; boundary="}),
    (b"abc", FORM),
    (b"--x\r\n\r\n\r\n--x--", FORM),
    (PART + b"\r\n\r\nb\r\n--x--\r\n", FORM),
    (PART + b'; filename="b"', FORM),
    (PART + b'; filename="\xff\x00"\r\n\r\nb\r\n--x--\r\n', {"content-type": FORM["content-type"] + "; charset=hex"}),
    (b"abc", {"content-encoding": "gzip"}),
    (b"abc", {"content-type": "\xff\xff"}),
]


@pytest.mark.parametrize("path", ["/caption", CHAT])
@pytest.mark.parametrize("content,headers", ODD)
def test_odd_bodies_are_the_clients_fault(client, path, content, headers):
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = client.post(path, content=content, headers=raw)
    assert response.status_code in (400, 415, 422), response.text
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message and len(message) < 600


def test_a_name_that_is_half_a_character_comes_back(client):
    name = b"\xed\xa0\x80 \xf0\x9f\x90\x95.png"
    content = PART + b'; filename="' + name + b'"\r\n\r\nb\r\n--x--\r\n'
    response = client.post("/caption", content=content, headers=FORM)
    (row,) = lines(response)
    assert response.status_code == 422 and row["image"].endswith(".png")
    content = b'{"images": ["\\ud800"]}'
    (row,) = lines(client.post("/caption", content=content, headers=JSON))
    assert row["image"] == "images[0]" and "must be base64" in row["error"]


@pytest.mark.slow
def test_told_to_stop_it_answers_what_was_asked(model):
    """The images wait for others to be captioned with, so they are in its hands when it is told."""
    contents = pictures(8)
    with serving_apart("--model", model, "--batch-wait", "1000", "--batch-size", "64") as (process, url):
        with ThreadPoolExecutor(8) as threads:
            sent = [threads.submit(httpx.post, f"{url}/caption", content=content, timeout=60) for content in contents]
            with httpx.Client(base_url=url) as client:
                until(lambda: counted(client)["hf_captioner_images_waiting"] == 8)
            process.send_signal(signal.SIGTERM)
            found = [future.result() for future in sent]
        assert [response.status_code for response in found] == [200] * 8
        assert all(response.json()["caption"] for response in found)
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


@pytest.mark.slow
def test_ctrl_c_and_a_key_from_the_environment(model):
    with serving_apart("--model", model, HF_CAPTIONER_API_KEY="k") as (process, url):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer k"}).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_what_cannot_be_served(model, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in {
            ("--port", port): f"`--host` and `--port` must be an address that is free, got 127.0.0.1:{port}",
            ("--host", "nowhere.invalid"): "must be an address that is free, got nowhere.invalid:8000",
            ("--port", "70000"): "--port.*65535",
            ("--max-images=9", "--max-waiting=8"): r"`--max-images` must be at most `--max-waiting` \(8\), got 9",
            ("--api-key", ""): "`--api-key` must be ASCII text",
            ("--model", str(tmp_path), "--port", "0"): "`--model` must be the folder",
            ("--model", model, "--port", "0", "--decoding", "nonsense"): "nonsense",
            ("--model", model, "--port", "0", "--num-return-sequences", "9"): "`num_return_sequences` must be at most",
        }.items():
            with pytest.raises(InputError, match=message):
                program(["serve", *arguments])
    monkeypatch.delitem(sys.modules, "hf_captioner.commands.server")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(InputError, match=r"must have the package fastapi: pip install 'hf_captioner\[serve\]'"):
        program(["serve", "--port", "0"])


def test_both_spellings_of_options():
    for name in ("--max-upload", "--max_upload"):
        work = app(["serve", name, "1.5", "--batch_wait", "20"], standalone_mode=False)
        assert work.args[2]["upload"] == 3 * 2**19 and work.args[3]["batch_wait"] == 0.02


@pytest.mark.slow
@pytest.mark.long
def test_together_is_faster_than_one_by_one(model, capsys):
    """By the command that measures it; a tiny captioner spends most of its time on what a batch does once."""
    measure_serving.main(["--model", model, "--data", "shapes:rows=32,seed=1", "--requests", "96", "--rounds", "2"])
    printed = capsys.readouterr().out
    found = re.search(r"Together ([\d.]+) times as many; 100.0% of the captions are the same.", printed)
    assert float(found[1]) > 1.2, printed
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| 1")]
    assert [int(row[0]) for row in rows] == [1, 16] and float(rows[0][4]) == 1 and float(rows[1][4]) > 2
