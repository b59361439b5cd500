"""
What `hf_captioner/compat.py` stands in for: one test per internal of a library, which fails first when the library
changes it. And by their syntax: no other file outside `models/` reaches into a private name of another library.
"""

import ast
import inspect
from concurrent.futures import Future

import evaluate
import pytest
from datasets import Dataset
from testing import ROOT
from testing.tiny_models import tiny_config
from transformers import AutoModelForImageTextToText, Seq2SeqTrainer, Trainer
from transformers.utils import PushInProgress

from hf_captioner import RnnCaptionerForConditionalGeneration
from hf_captioner.compat import captioner_class, dataset_fingerprint
from hf_captioner.metrics import CaptionMetrics
from hf_captioner.trainers import CaptioningTrainer

PACKAGE = ROOT / "hf_captioner"
FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.parent.name != "models" and path.name != "compat.py"  # models/ has its own file and test
]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """Private names that a file itself defines, by `def`, `class` or assignment."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_libraries_are_touched_in_one_file(path):
    tree = ast.parse(path.read_text())
    mine = set().union(*(own_names(ast.parse(file.read_text())) for file in FILES))
    inherited = {name for cls in (Trainer, Seq2SeqTrainer, evaluate.Metric) for name in dir(cls)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            assert node.attr in mine, f"{path.name}:{node.lineno}: {node.attr}"
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and is_private(part.name) and part.name in inherited:
                    # what evaluate's documentation tells every metric to write
                    assert part.name in ("_info", "_compute"), f"{path.name}:{part.lineno}: {part.name}"


def test_the_class_of_a_configuration():
    assert captioner_class(tiny_config()) is RnnCaptionerForConditionalGeneration
    assert type(AutoModelForImageTextToText.from_config(tiny_config())) is RnnCaptionerForConditionalGeneration


def test_a_fingerprint_follows_the_rows():
    first, second = (Dataset.from_dict({"a": [1, 2, number]}) for number in (3, 4))
    assert isinstance(dataset_fingerprint(first), str)
    assert dataset_fingerprint(first) != dataset_fingerprint(second)
    assert dataset_fingerprint(first) != dataset_fingerprint(first.select([0, 1]))


def test_a_metric_in_memory_makes_no_folder(tmp_path, monkeypatch):
    assert "self._build_data_dir()" in inspect.getsource(evaluate.EvaluationModule)
    (tmp_path / "file").write_text("")  # in which no folder can be made
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "file" / "metrics")
    CaptionMetrics(cache_dir=str(tmp_path / "file" / "metrics"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "name,parameters",
    {
        "_save": ["self", "output_dir", "state_dict"],
        "_push_from_checkpoint": ["self", "checkpoint_folder"],
        "_prepare_inputs": ["self", "inputs"],
    }.items(),
)
def test_hooks_of_the_trainer(name, parameters):
    """The Trainer calls it by this name, with these parameters."""
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters
    assert f"self.{name}(" in inspect.getsource(Trainer)


def test_the_number_of_items_is_asked_for_by_its_name():
    assert list(inspect.signature(Trainer._get_num_items_in_batch).parameters)[:3] == [
        "self",
        "batch_samples",
        "device",
    ]
    assert "self._get_num_items_in_batch(" in inspect.getsource(Trainer)
    assert "_gen_kwargs" in inspect.getsource(Seq2SeqTrainer.evaluate)
    assert "training_args.bin" in inspect.getsource(Trainer._save) or "TRAINING_ARGS_NAME" in inspect.getsource(
        Trainer._save
    )
    assert CaptioningTrainer._save is not Trainer._save


def test_pushes_are_waited_for_together():
    pushes = [Future(), Future()]
    progress = PushInProgress(pushes[:1])
    progress.jobs.extend(pushes[1:])
    pushes[0].set_result(None)
    assert not progress.is_done()
    pushes[1].set_result(None)
    progress.wait_until_done()
    assert progress.is_done()
