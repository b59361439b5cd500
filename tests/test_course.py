"""The course: its notebooks are whole, run in their time, and its exercises tell right from wrong."""

import ast
import importlib.util
import os
import re
import sys
import time
from collections import Counter

import pytest
from testing import ROOT

COURSE = ROOT / "docs" / "course"
BESIDE = {"checks", "solutions"}
# The extras train and explain bring all of these.
ALLOWED = {"hf_captioner", "matplotlib", "numpy", "PIL", "torch", "transformers"} | BESIDE
LIMIT = 180  # seconds on two idle cores; a busy machine says with COURSE_SECONDS how many it allows

NOTEBOOKS = sorted(COURSE.glob("[0-9][0-9]_*.ipynb"))
ENGLISH = [path for path in NOTEBOOKS if not path.name.endswith(".ko.ipynb")]
KOREAN = [path for path in NOTEBOOKS if path.name.endswith(".ko.ipynb")]


def beside(name: str):
    """A module of the course, which lies beside the notebooks."""
    spec = importlib.util.spec_from_file_location(f"course_{name}", COURSE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks, solutions = beside("checks"), beside("solutions")


def wrong_bleu(candidates, references):
    """The mean over images, which is what one computes first."""
    pairs = zip(candidates, references, strict=True)
    return sum(solutions.corpus_bleu([one], [truths]) for one, truths in pairs) / len(candidates)


def bleu_without_brevity(candidates, references):
    padded = [[one for one in truths] for truths in references]
    matched, possible = [0] * 4, [0] * 4
    for candidate, captions in zip(candidates, padded, strict=True):
        for n in range(1, 5):
            most = Counter()
            for one in captions:
                most |= Counter(solutions._ngrams(one, n))
            matched[n - 1] += (Counter(solutions._ngrams(candidate, n)) & most).total()
            possible[n - 1] += len(candidate) - n + 1
    product = 1.0
    for hit, all_ in zip(matched, possible, strict=True):
        product *= hit / all_
    return product**0.25


def best_rouge(candidate, references):
    return max(solutions.rouge_l_of_several(candidate, [one]) for one in references)


def frequency_in_captions(references, ngram):
    return sum(ngram in solutions._ngrams(one, len(ngram)) for captions in references for one in captions)


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_bleu", "corpus_bleu", wrong_bleu, "mean of the images' own scores"),
    ("check_bleu", "corpus_bleu", bleu_without_brevity, "brevity penalty is missing"),
    ("check_rouge_l", "rouge_l_of_several", best_rouge, "highest precision and the highest recall"),
    ("check_document_frequency", "document_frequency", frequency_in_captions, "an image with all its captions"),
]


def test_every_check_has_a_solution_and_a_wrong_answer():
    found = {name for name in vars(checks) if name.startswith("check_")}
    assert found == {check for check, *_ in EXERCISES}


@pytest.mark.parametrize(("check", "solution"), sorted({(check, name) for check, name, *_ in EXERCISES}))
def test_solutions_are_right(check, solution, capsys):
    getattr(checks, check)(getattr(solutions, solution))
    assert capsys.readouterr().out == f"{solution}: right.\n"


@pytest.mark.parametrize(("check", "answer", "message"), [(check, wrong, says) for check, _, wrong, says in EXERCISES])
def test_wrong_answers_are_told_why(check, answer, message):
    with pytest.raises(checks.WrongAnswer, match=re.escape(message)):
        getattr(checks, check)(answer)


@pytest.mark.parametrize("check", sorted({check for check, *_ in EXERCISES}))
def test_an_exercise_without_an_answer_stops_nothing(check, capsys):
    def unanswered(*inputs):
        pass

    getattr(checks, check)(unanswered)
    assert "no answer yet" in capsys.readouterr().out


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
    known = {(check, solution) for check, solution, *_ in EXERCISES}
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
