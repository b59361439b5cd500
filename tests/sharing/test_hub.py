"""Captioners on the wire: pushed to a Hub on this machine, loaded with and without this package."""

import ast
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from testing import ROOT
from testing.hub_push import KINDS
from testing.hub_server import TOKEN, HubServer
from testing.training import arguments
from transformers import pipeline

from hf_captioner.data import shapes_dataset

LOAD = "tests/testing/hub_load.py"
PATHS = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
FAMILIES = {"rnn_captioner": "Rnn", "transformer_captioner": "Transformer"}
MODEL = "RnnCaptionerForConditionalGeneration"
pytestmark = pytest.mark.slow


def family(kind: str) -> str:
    return KINDS[kind].get("model_type", "rnn_captioner")


def run(script: str | Path, *arguments, python=sys.executable, **environment) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [str(part) for part in (python, ROOT / script, *arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(home):
    """The Hub, with all kinds pushed to it, and with damaged copies of one of them."""
    with HubServer() as hub:
        hub.drop = [r"PUT /objects/"]
        hub.add("user/own-card", {"README.md": b"---\ntags: [mine]\n---\nMy own words.\n"})
        run("tests/testing/hub_push.py", home, PYTHONPATH=PATHS, **hub.environment(home / "pusher"))
        files = hub.repositories["user/additive"].files()
        config = json.loads(files["config.json"]) | {"hidden_size": 20}
        for name, changes in {
            "no-attention": {"attention.py": None},
            "no-weights": {"model.safetensors": None},
            "other-shape": {"config.json": json.dumps(config).encode()},
        }.items():
            changed = {path: content for path, content in {**files, **changes}.items() if content is not None}
            hub.add(f"user/{name}", changed)
        yield hub


@pytest.fixture(scope="module")
def alone(hub, home) -> Path:
    """What a process finds in a fresh virtual environment that has this one's packages, but not hf_captioner."""
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home / "venv"), "platbase": str(home / "venv")}))
    # A path in a .pth file is searched, but its own .pth files, such as that of an editable package, are not read.
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = home / "alone"
    folder.mkdir()
    run(
        LOAD,
        folder,
        "alone",
        *KINDS,
        python=python,
        PYTHONPATH="",
        **hub.environment(home / "loader"),
    )
    return folder


@pytest.fixture(scope="module")
def installed(hub, home) -> Path:
    folder = home / "installed"
    folder.mkdir()
    hub.requests.clear()
    run(
        LOAD,
        folder,
        "installed",
        *KINDS,
        PYTHONPATH=str(ROOT),
        **hub.environment(home / "user"),
    )
    return folder


@pytest.fixture(scope="module", params=["alone", "installed"])
def loaded(request) -> tuple[bool, dict, dict]:
    folder = request.getfixturevalue(request.param)
    found = json.loads((folder / "found.json").read_text())
    return request.param == "installed", found, load_file(folder / "found.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_logits_and_captions(loaded, home, kind):
    is_installed, found, tensors = loaded
    expected = load_file(home / "expected.safetensors")
    assert found["importable"] is is_installed
    for auto in ("AutoModel", "AutoModelForImageTextToText", "saved again"):
        assert torch.equal(tensors[f"user/{kind}.{auto}.logits"], expected[f"{kind}.logits"])
        assert torch.equal(tensors[f"user/{kind}.{auto}.beams"], expected[f"{kind}.beams"])
    found = found[kind]
    assert found["caption"]["generated_text"] == found["general"].strip() and 0 < found["caption"]["score"] <= 1
    assert found["chat"].strip() == found["caption"]["generated_text"]
    assert found["labels"] == json.loads((home / "labels.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_whose_classes_they_are(loaded, kind):
    is_installed, found, _ = loaded
    prefix = FAMILIES[family(kind)]
    classes = found[kind]["classes"]
    model = f"{prefix}CaptionerForConditionalGeneration"
    assert classes["AutoModel"] == classes["AutoModelForImageTextToText"] == model
    assert classes["AutoConfig"] == f"{prefix}CaptionerConfig" and classes["AutoProcessor"] == "CaptionerProcessor"
    assert classes["pipeline"] == "ImageCaptioningPipeline"
    for auto, module in found[kind]["modules"].items():
        if auto != "AutoTokenizer":  # transformers' own
            assert module.startswith("hf_captioner." if is_installed else f"transformers_modules.user.{kind}."), auto


def test_nothing_is_warned_of(loaded):
    """Weights fit; where code was downloaded, transformers says so."""
    is_installed, found, _ = loaded
    usual = ["is not supported for image-text-to-text"]  # by that pipeline, of any model that is not transformers' own
    usual += [] if is_installed else ["files was downloaded"]
    assert [warning for warning in found["warnings"] if not any(part in warning for part in usual)] == []


def test_installed_code_is_used_and_none_fetched(installed, hub):
    assert any("config.json" in line for line in hub.requests)
    assert [line for line in hub.requests if line.startswith("GET") and line.endswith(".py")] == []


def test_a_revision(loaded, home):
    _, _, tensors = loaded
    expected = load_file(home / "expected.safetensors")
    assert torch.equal(tensors["changed.logits"], expected["changed.logits"])
    assert not torch.equal(expected["changed.logits"], expected["additive.logits"])


@pytest.mark.parametrize(
    "kind,names",
    {
        "revision": ("user/additive", "nowhere"),
        "repository": ("user/nothing",),
        "private": ("user/private",),
        "weights": ("user/no-weights", "model.safetensors"),
        "shape": ("lm_head.weight", "20", "16"),
    }.items(),
)
def test_errors_name_what_is_wrong(loaded, kind, names):
    is_installed, found, _ = loaded
    message = found["errors"][kind]
    assert all(name in message for name in names), message


def test_missing_code_is_named(alone):
    errors = json.loads((alone / "found.json").read_text())["errors"]
    assert "user/no-attention" in errors["code"] and "attention.py" in errors["code"]


def test_a_push_to_a_branch_leaves_the_main_one_alone(hub):
    repository = hub.repositories["user/branch-only"]
    assert repository.messages == [("main", "initial commit"), ("dev", f"Upload {MODEL}")]
    assert set(repository.files()) <= {".gitattributes"}
    assert 'model="user/branch-only"' in ModelCard(repository.files("dev")["README.md"].decode()).text


def test_a_card_that_is_there_stays(hub):
    """Also when a saved folder is pushed, and with tags that are added."""
    repository = hub.repositories["user/own-card"]
    card = ModelCard(repository.files()["README.md"].decode())
    assert card.text.strip() == "My own words." and card.data.tags == ["mine", "theirs"]
    messages = [message for _, message in repository.messages]
    assert messages == ["initial commit", f"Upload {MODEL}", "saved and pushed"]
    assert "model.safetensors" in repository.files()


def test_saving_and_pushing_in_one_call_has_the_card(hub):
    card = ModelCard(hub.repositories["user/saved"].files()["README.md"].decode())
    assert 'model="user/saved"' in card.text and card.data.pipeline_tag == "image-text-to-text"


def test_a_private_repository_opens_with_its_token_only(hub, alone):
    assert hub.repositories["user/private"].private and not hub.repositories["user/additive"].private
    found = json.loads((alone / "found.json").read_text())
    assert "private" in found["errors"]  # and with the token it was loaded, or there would be no found.json


def test_a_broken_upload_is_repeated(hub, alone):
    """What came through was compared above."""
    (broken,) = hub.broken
    assert broken.startswith("PUT /objects/") and hub.drop == []
    assert hashlib.sha256(hub.objects[broken.split("/")[-1]]).hexdigest() == broken.split("/")[-1]


def test_the_server_sends_parts_and_says_what_they_are_of(hub):
    content = hub.repositories["user/additive"].files()["model.safetensors"]
    url = f"{hub.url}/user/additive/resolve/main/model.safetensors"
    with urlopen(Request(url, headers={"Range": "bytes=100-"})) as answer:
        assert answer.status == 206 and answer.read() == content[100:]
        assert answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        assert answer.headers["Content-Range"] == f"bytes 100-{len(content) - 1}/{len(content)}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_whole(hub, alone, kind):
    """Exactly these files, none of them a pickle; and the same when a process saves what it has from the Hub."""
    name = family(kind)
    code = {"configuration_captioner", f"configuration_{name}", "modeling_captioner", f"modeling_{name}"}
    code |= {"attention", "vision_encoder", "sharing_captioner", "pipeline_captioner", "tokenization_captioner"}
    code |= {"processing_captioner", "image_processing_captioner", "generation_captioner", "loss_captioner", "compat"}
    code |= {"machine_captioner"}
    code |= {"image_reading", "confidence_captioner", "url_captioner", "bounds_captioner"}
    code |= {"recurrent_cache"} if name == "rnn_captioner" else set()
    data = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "README.md"}
    data |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    expected = data | {f"{module}.py" for module in code}
    files = hub.repositories[f"user/{kind}"].files()
    assert set(files) - {".gitattributes"} == expected
    saved = alone / "user" / kind
    assert {path.name for path in saved.iterdir()} == expected
    for module in code:
        assert (saved / f"{module}.py").read_bytes() == files[f"{module}.py"]
    for path in saved.glob("*.json"):
        assert "--" not in path.read_text(), f"{path.name} must not point to the repository that it came from"
    card = ModelCard(files["README.md"].decode())
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.library_name == "transformers"
    assert f'model="user/{kind}"' in card.text


ALLOWED = {"numpy", "PIL", "safetensors", "torch", "tokenizers", "transformers", "huggingface_hub"} | (
    sys.stdlib_module_names
    - {"asyncio", "ftplib", "http", "multiprocessing", "pickle", "smtplib", "socket", "ssl", "subprocess", "urllib"}
)
FETCHING = {"url_captioner.py": {"certifi", "http", "ssl", "urllib"}}  # of addresses that a user gives
REFUSED = {"eval", "exec", "compile", "open", "__import__"}


@pytest.mark.parametrize("kind", ["additive", "cnn_transformer"])
def test_the_code_in_the_folder_asks_for_little(hub, kind):
    """By its syntax: what it imports, and that it calls nothing that opens a socket or runs other code."""
    for path, content in hub.repositories[f"user/{kind}"].files().items():
        if not path.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(content)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            allowed = ALLOWED | FETCHING.get(path, set())
            assert {name.split(".")[0] for name in names} <= allowed, f"{path}: {names}"
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", "")
                assert called not in REFUSED, f"{path}:{node.lineno}: {called}"


def test_training_pushes_at_checkpoints_and_at_its_end(hub, home):
    """Every commit is a whole captioner, and none has a pickle or the token."""
    folder = home / "trained"
    settings = dict(push_to_hub=True, hub_model_id="user/trained", hub_token=TOKEN, num_samples=4)
    command = arguments(folder, **settings, eval_strategy="no", load_best_model_at_end=False)
    run("training/train.py", *command, PYTHONPATH=str(ROOT), **hub.environment(home / "trainer", token=None))
    repository = hub.repositories["user/trained"]
    messages = [message for _, message in repository.messages]
    assert messages[1] == "Training in progress, step 2" and messages[-1] == "End of training"
    captions = set()
    for number, files in enumerate(list(repository.commits.values())[1:]):
        assert {"modeling_rnn_captioner.py", "attention.py", "pipeline_captioner.py", "README.md"} <= set(files)
        assert not [path for path in files if path.endswith((".bin", ".pt", ".pth", ".pkl"))]
        assert not any(TOKEN.encode() in content for content in files.values())
        saved = home / "commits" / str(number)
        saved.mkdir(parents=True)
        for path, content in files.items():
            (saved / path).parent.mkdir(exist_ok=True)
            (saved / path).write_bytes(content)
        captioner = pipeline("image-captioning", model=str(saved), device="cpu")
        captions.add(captioner(shapes_dataset(1)[0]["image"])[0]["score"])
    assert len(captions) > 1, "the weights of the checkpoint and those at the end differ"
    card = ModelCard(files["README.md"].decode())
    assert 'model="user/trained"' in card.text and card.data.eval_results and "examples/0.jpg" in files
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
