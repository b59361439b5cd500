"""The demo's page is given pictures of every kind, and runs for long: nothing that its process holds grows."""

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from testing.held import held_by
from testing.pictures import BAD, GOOD, noise, saved
from testing.serving import tiny_folder
from testing.tiny_models import noise_pictures

gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")


def test_every_kind_of_picture_on_the_page(tmp_path, faults):
    """As the page has them read: what a person sees, or an error with the visitor's name of the file."""
    demo_page = pytest.importorskip("hf_captioner.commands.demo_page", reason="the extra demo is not installed")
    upload = tmp_path / "upload"
    seen = refused = 0
    for name, (content, picture) in GOOD.items():
        upload.write_bytes(content)
        found = demo_page.read_upload(SimpleNamespace(path=str(upload), orig_name=name))
        seen += int(np.abs(np.asarray(found).astype(int) - picture).max() <= 1)
    for name, content in {**BAD, "photo.jpg": saved(noise(), "EPS")}.items():
        upload.write_bytes(content)
        with pytest.raises(demo_page.gr.Error) as raised:
            demo_page.read_upload(SimpleNamespace(path=str(upload), orig_name=name))
        said = raised.value.message
        refused += said.startswith("The image cannot be read: ") and str(tmp_path) not in said and len(said) < 600
    faults.count("unusual images on the demo's page", len(GOOD), seen, "the picture that a person sees")
    faults.count("bad images on the demo's page", len(BAD) + 1, refused, "an error that says why")
    assert seen == len(GOOD) and refused == len(BAD) + 1


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc, which tells what a process holds")
def test_nothing_grows_in_two_thousand_requests(tmp_path):
    """By four clients, each of which captions and has the caption explained."""
    model = tiny_folder(tmp_path / "tiny")
    noise_pictures(1)[0].save(tmp_path / "photo.png")
    command = [sys.executable, "-m", "hf_captioner.commands.program", "demo", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            own = threading.local()  # a client that two threads share may lose an answer when another one ends

            def connect() -> None:
                own.client = gradio_client.Client(url, verbose=False)

            def ask(number: int) -> str:
                image = gradio_client.handle_file(str(tmp_path / "photo.png"))
                settings = (2, "beam search", 1.0, 1, 0, "")
                if number % 10:
                    return own.client.predict(image, *settings, api_name="/caption")[0]
                return own.client.predict(image, "gradient", *settings, api_name="/explain")

            held, answered = [], 0
            with ThreadPoolExecutor(4, initializer=connect) as pool:
                for first, last in [(0, 500), (500, 1000), (1000, 2000)]:
                    answered += sum(map(bool, pool.map(ask, range(first, last))))
                    held.append(held_by(process.pid))
            print(held)
            assert answered == 2000
            (first, _, _), (memory, threads, handles), (later, more_threads, more_handles) = held
            assert later - max(first, memory) < 25, held  # MB; what is waiting to be collected comes and goes
            assert more_threads <= threads + 2 and more_handles <= handles + 4, held
        finally:
            process.terminate()
