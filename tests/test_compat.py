"""
What `hf_captioner/compat.py` stands in for: one test per internal of a library, which fails first when the library
changes it. And by their syntax: no other file outside `models/` reaches into a private name of another library.
"""

import ast
import inspect
from concurrent.futures import Future

import evaluate
import pytest
import torch
from testing import ROOT
from testing.tiny_models import random_images, tiny_config, tiny_vit
from transformers import AutoModel, AutoModelForImageTextToText, GenerationMixin, Seq2SeqTrainer, Trainer
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import PushInProgress

from hf_captioner import RnnCaptionerForConditionalGeneration
from hf_captioner.compat import captioner_class, eager_attention, special_tokens
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


def own_names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """
    Private names that a file itself defines: those that are reached through an object (methods, attributes and fields
    of classes), and those of the module. A function of ours excuses no attribute of somebody else's object.
    """
    attributes, functions = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    attributes.add(part.name)
                elif isinstance(part, (ast.Assign, ast.AnnAssign)):
                    targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                    attributes.update(target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                attributes.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            functions.add(node.name)
    return attributes, functions


def private_uses(source: str, attributes: set[str], functions: set[str]) -> list[str]:
    """What a file reaches for that is private and not among the package's own names, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in attributes:
            found.append(f"{node.lineno}: .{node.attr}")
        elif isinstance(node, ast.ImportFrom) and not node.level:  # an absolute import, of another library
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [f"{node.lineno}: import {name}" for name in names if is_private(name)]
        elif isinstance(node, ast.ImportFrom):
            private = [alias.name for alias in node.names if is_private(alias.name)]
            found += [f"{node.lineno}: import {name}" for name in private if name not in functions]
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            found += [f"{node.lineno}: import {part}" for part in parts if is_private(part)]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("getattr", "setattr", "hasattr"):
            name = getattr(node.args[1], "value", None) if len(node.args) > 1 else None
            if isinstance(name, str) and is_private(name) and name not in attributes:
                found.append(f"{node.lineno}: {node.func.id} {name}")
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                # `_info` and `_compute` are what evaluate's documentation tells every metric to write
                if isinstance(part, ast.FunctionDef) and part.name in INHERITED - {"_info", "_compute"}:
                    found.append(f"{part.lineno}: def {part.name}")
    return found


INHERITED = {name for cls in (Trainer, Seq2SeqTrainer, evaluate.Metric) for name in dir(cls) if is_private(name)}


@pytest.fixture(scope="module")
def mine() -> tuple[set[str], set[str]]:
    names = [own_names(ast.parse(path.read_text())) for path in FILES]
    return tuple(set().union(*kind) for kind in zip(*names, strict=True))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_libraries_are_touched_in_one_file(path, mine):
    assert private_uses(path.read_text(), *mine) == []


@pytest.mark.parametrize(
    "source",
    [
        "dataset._fingerprint",  # though data/feature_cache.py has a function of this name
        "AutoModel._model_mapping[kind]",
        "from transformers.utils.import_utils import _is_package_available",
        "from torch._dynamo import reset",
        "import torch._dynamo",
        "getattr(trainer, '_gen_kwargs')",
        "class A(Trainer):\n    def _save(self): pass",
        "model._secret = 1",
    ],
)
def test_the_search_finds_every_way_to_a_private_name(source, mine):
    assert len(private_uses(source, *mine)) == 1


def test_the_search_passes_over_names_of_our_own(mine):
    assert private_uses("self._noted\nself._judge()\nobject.__dict__\nfrom .sources import load_captions", *mine) == []


def test_the_class_of_a_configuration():
    assert captioner_class(tiny_config()) is RnnCaptionerForConditionalGeneration
    assert type(AutoModelForImageTextToText.from_config(tiny_config())) is RnnCaptionerForConditionalGeneration


def test_a_metric_in_memory_makes_no_folder(tmp_path, monkeypatch):
    assert "self._build_data_dir()" in inspect.getsource(evaluate.EvaluationModule)
    (tmp_path / "file").write_text("")  # in which no folder can be made
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "file" / "metrics")
    CaptionMetrics(cache_dir=str(tmp_path / "file" / "metrics"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "name,parameters",
    {
        "_get_output_dir": ["self", "trial"],
        "_save": ["self", "output_dir", "state_dict"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_push_from_checkpoint": ["self", "checkpoint_folder"],
        "_prepare_inputs": ["self", "inputs"],
        "_save_optimizer_and_scheduler": ["self", "output_dir"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
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


def test_checkpoints_are_written_where_we_say():
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "self._get_output_dir(trial=trial)" in source and "rotate_checkpoints(" in source
    parameters = inspect.signature(rotate_checkpoints).parameters
    assert {"output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime"} <= set(parameters)


def test_an_epoch_is_begun_by_its_name_with_its_number_and_loader():
    loop = inspect.getsource(Trainer._inner_training_loop)
    assert "self._run_epoch(" in loop and "epoch=epoch," in loop and "train_dataloader=train_dataloader," in loop
    # Sums begin at nothing before callbacks are told that training begins, and are of these names.
    for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"):
        assert loop.index(f"self.{name} = ") < loop.index("callback_handler.on_train_begin")
    ends = inspect.getsource(Trainer._finalize_training)
    assert ends.index("self._total_loss_scalar += self._tr_loss") < ends.index("self.log(metrics)")


def test_pushes_are_waited_for_together():
    pushes = [Future(), Future()]
    progress = PushInProgress(pushes[:1])
    progress.jobs.extend(pushes[1:])
    pushes[0].set_result(None)
    assert not progress.is_done()
    pushes[1].set_result(None)
    progress.wait_until_done()
    assert progress.is_done()


@pytest.mark.parametrize(
    "name,parameters",
    {
        "_prefill": ["input_ids", "generation_config", "model_kwargs"],
        "_update_model_kwargs_for_generation": ["outputs", "model_kwargs", "is_encoder_decoder"],
        "_sample": ["input_ids", "logits_processor", "stopping_criteria", "generation_config"],
    }.items(),
)
def test_steps_of_a_search(name, parameters):
    """Every decoding loop of transformers takes these steps, by these names and with these parameters."""
    found = [part for part in inspect.signature(getattr(GenerationMixin, name)).parameters if part != "self"]
    assert found[: len(parameters)] == parameters
    assert "next_sequence_length" in inspect.getsource(GenerationMixin.prepare_inputs_for_generation)


def test_special_tokens_are_those_that_generation_has_prepared():
    model = RnnCaptionerForConditionalGeneration(tiny_config())
    seen = []

    def search(model, input_ids, generation_config, **kwargs):
        seen.append(special_tokens(generation_config))
        return input_ids

    for ends in ([3, 5], 3):
        model.generate(random_images(1), custom_generate=search, eos_token_id=ends, pad_token_id=1)
    assert seen == [(1, [3, 5]), (1, [3])]


def test_attention_is_eager_for_a_while():
    """Only then a vision model gives its weights, and the way that was set before comes back, after an error too."""
    model = AutoModel.from_config(tiny_vit(), attn_implementation="sdpa").eval()
    images = random_images(1)
    without = model(pixel_values=images).last_hidden_state
    with pytest.raises(KeyError), eager_attention(model):
        outputs = model(pixel_values=images, output_attentions=True)
        raise KeyError
    assert outputs.attentions[0].shape == (1, 2, 17, 17)
    torch.testing.assert_close(outputs.last_hidden_state, without)
    assert model.config._attn_implementation == "sdpa"
