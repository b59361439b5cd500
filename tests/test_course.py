"""The course: its notebooks are whole, run in their time, and its exercises tell right from wrong."""

import ast
import os
import re
import sys
import time
from importlib import import_module

import lessons
import pytest
import torch
from exercises import WrongAnswer
from testing import ROOT

COURSE = ROOT / "docs" / "course"
BESIDE = {"exercises", "lessons"}
# The extras train and explain bring all of these.
ALLOWED = {"hf_captioner", "matplotlib", "numpy", "PIL", "torch", "transformers"} | BESIDE
LIMIT = 180  # seconds on two idle cores; a busy machine says with COURSE_SECONDS how many it allows

NOTEBOOKS = sorted(COURSE.glob("[0-9][0-9]_*.ipynb"))
ENGLISH = [path for path in NOTEBOOKS if not path.name.endswith(".ko.ipynb")]
KOREAN = [path for path in NOTEBOOKS if path.name.endswith(".ko.ipynb")]


LESSONS = [path.name[:2] for path in ENGLISH]
# lesson, check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    (lesson, *exercise) for lesson in LESSONS for exercise in import_module(f"course.lesson_{lesson}").EXERCISES
]


def check_of(lesson: str, name: str):
    return getattr(import_module(f"exercises.lesson_{lesson}"), name)


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_check_has_a_solution_and_a_wrong_answer(lesson):
    found = {name for name in vars(import_module(f"exercises.lesson_{lesson}")) if name.startswith("check_")}
    assert found == {check for number, check, *_ in EXERCISES if number == lesson}


@pytest.mark.parametrize(("lesson", "check", "solution"), sorted({exercise[:3] for exercise in EXERCISES}))
def test_solutions_are_right(lesson, check, solution, capsys):
    check_of(lesson, check)(getattr(import_module(f"solutions.lesson_{lesson}"), solution))
    assert capsys.readouterr().out == f"{solution}: right.\n"


@pytest.mark.parametrize(("lesson", "check", "solution", "answer", "message"), EXERCISES)
def test_wrong_answers_are_told_why(lesson, check, solution, answer, message):
    with pytest.raises(WrongAnswer, match=re.escape(message)):
        check_of(lesson, check)(answer)


@pytest.mark.parametrize(("lesson", "check"), sorted({exercise[:2] for exercise in EXERCISES}))
def test_an_exercise_without_an_answer_stops_nothing(lesson, check, capsys):
    def unanswered(*inputs):
        pass

    check_of(lesson, check)(unanswered)
    assert "no answer yet" in capsys.readouterr().out


def test_shapes_are_tensors_that_go_together():
    shapes = lessons.load(12, seed=5)
    assert shapes.pixels.shape == (12, 3, 48, 48) and -1 <= shapes.pixels.min() < 0 < shapes.pixels.max() <= 1
    assert shapes.features.shape == (12, lessons.GRID[0] * lessons.GRID[1], 64)
    some = shapes.of(2)
    assert 0 < len(some) < 12 and all(len(row["objects"]) == 2 for row in some.rows)
    for row, pixels, features, labels in zip(some.rows, some.pixels, some.features, some.labels, strict=True):
        place = shapes.rows.index(row)
        assert torch.equal(pixels, shapes.pixels[place]) and torch.equal(features, shapes.features[place])
        for caption, ids in zip(row["captions"], labels, strict=True):
            ids = ids[ids != -100].tolist()
            assert lessons.TOKENIZER.decode(ids[:-1]) == caption and ids[-1] == lessons.TOKENIZER.eos_token_id
            assert lessons.TOKENIZER.unk_token_id not in ids


def test_a_loop_trains_and_exact_match_counts(capsys):
    shapes = lessons.load(8, seed=5)
    weight = torch.nn.Parameter(torch.tensor(3.0))
    model = torch.nn.ParameterList([weight])
    losses = lessons.train(model, shapes, steps=20, rate=0.3, images=4, captions=3, loss=squared)
    assert len(losses) == 20 and losses[-1] < losses[0] / 4
    assert "step   20: loss" in capsys.readouterr().out
    captions = [row["captions"][number % 5] for number, row in enumerate(shapes.rows)]
    captions[3] = captions[3] + " too"
    assert lessons.exact_matches(captions, shapes).tolist() == [True] * 3 + [False] + [True] * 4


@pytest.mark.parametrize("steps", [1, 9, 10, 11])
def test_a_loop_may_be_short(steps):
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor(3.0))])
    losses = lessons.train(model, lessons.load(4, seed=5), steps=steps, images=4, captions=3, loss=squared)
    assert len(losses) == steps and losses == sorted(losses, reverse=True)


def test_maps_are_arrays_or_tensors_of_any_kind():
    plt = pytest.importorskip("matplotlib.pyplot", reason="no matplotlib, which draws maps")
    row, weights = lessons.load(1, seed=5).rows[0], torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    maps = [weights.numpy(), weights, weights.clone().requires_grad_(), weights.bfloat16()]
    figure, places = plt.subplots(1, len(maps))
    for axes, one in zip(places, maps, strict=True):
        lessons.draw_map(axes, row, one, "a title")
        assert axes.get_title() == "a title"
        dark = torch.as_tensor(axes.images[1].get_alpha())  # 0 where the weight is the highest
        torch.testing.assert_close(dark, 0.8 * (1 - weights / weights.max()), rtol=0, atol=0.01)
    plt.close(figure)


def squared(model, batch):
    assert batch.labels.shape[:2] == (4, 3) and len(batch.rows) == 4
    return model[0] ** 2


def read(path):
    nbformat = pytest.importorskip("nbformat", reason="no nbformat, which reads notebooks")
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def code_cells(path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_carry_no_outputs(path):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        assert cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_import_what_the_extras_bring(path):
    for source in code_cells(path):
        for node in ast.walk(ast.parse(source)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in ALLOWED | {"IPython"} or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_exercises_of_notebooks_are_known(path):
    known = {(check, solution) for lesson, check, solution, *_ in EXERCISES if lesson == path.name[:2]}
    asked = re.findall(r"^checks\.(\w+)\((\w+)\)$", "\n".join(code_cells(path)), re.MULTILINE)
    assert len(asked) >= 2 and set(asked) <= known


def test_there_is_no_translation_without_its_original():
    assert ENGLISH
    assert {path.name for path in KOREAN} <= {path.name.replace(".ipynb", ".ko.ipynb") for path in ENGLISH}


@pytest.mark.parametrize("path", KOREAN, ids=lambda path: path.name)
def test_both_languages_run_the_same_code(path):
    english, korean = read(path.with_name(path.name.replace(".ko.", "."))), read(path)
    assert [(cell.id, cell.cell_type) for cell in korean.cells] == [
        (cell.id, cell.cell_type) for cell in english.cells
    ]
    assert code_cells(path) == code_cells(path.with_name(path.name.replace(".ko.", ".")))
    for cell in korean.cells:
        if cell.cell_type == "markdown":
            assert re.search("[가-힣]", cell.source), cell.source


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.name)
def test_notebooks_run_in_their_time(path, tmp_path, monkeypatch):
    """The Korean ones have the same code."""
    nbclient = pytest.importorskip("nbclient", reason="no nbclient, which runs notebooks")
    pytest.importorskip("ipykernel", reason="no ipykernel, in which notebooks run")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = read(path)
    start = time.monotonic()
    limit = int(os.environ.get("COURSE_SECONDS", LIMIT))
    client = nbclient.NotebookClient(notebook, timeout=limit, resources={"metadata": {"path": str(COURSE)}})
    client.execute()
    assert time.monotonic() - start < limit
