"""The lesson in examples/lesson: its notebook runs, and its cells find what its text says."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

EXAMPLES = Path(__file__).parents[2] / "examples"

# What the pictures show, for those claims whose numbers no cell prints.
SHOWN = """
import json
shown = {
    "check": [steps.tolist(), errors],
    "rates": {o.__name__: [losses_with[o], losses_without[o]] for o in rates},
    "gamma": networks["Adam", "with layer norm"][1].weight.data.tolist(),
    "variance": {name: [float(e) for e in each] for name, each in variance_errors.items()},
    "layer norm": {name: [float(e) for e in each] for name, each in layer_norm_errors.items()},
    "last gradient": {name: [float(e) for e in each] for name, each in sizes.items()},
}
print(json.dumps(shown))
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the module that runs the lesson."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from lesson import requirements, run

    if requirements.missing():
        pytest.skip(f"could not import {requirements.missing()}: {requirements.REMEDY}")
    return run


def execute(run: ModuleType) -> SimpleNamespace:
    """Execute the lesson, then `SHOWN` and the answers to its exercises; none may fail.

    Return `texts` (what each cell printed), `stderr`, `pictures` and `shown`.
    """
    notebook = run.read(run.LESSON)
    exercises = next(cell.source for cell in notebook.cells if cell.id == "exercises")
    answers = re.findall(r"```python\n(.*?)```", exercises, re.DOTALL)
    assert len(answers) >= 3
    longer = deepcopy(notebook)
    longer.cells += [nbformat.v4.new_code_cell(source) for source in (SHOWN, *answers)]
    executed = run.execute(longer, report=lambda line: None)
    shown = json.loads(_printed(executed.cells[len(notebook.cells)]))
    executed.cells = executed.cells[: len(notebook.cells)]
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    return SimpleNamespace(
        texts={cell.id: _printed(cell) for cell in cells},
        pictures=[o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {})],
        stderr=[o.text for cell in cells for o in cell.outputs if o.get("name") == "stderr"],
        shown=shown,
    )


def _printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def _numbers(text: str) -> list[float]:
    found = re.findall(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?", text)
    return [float(number.replace(",", "")) for number in found]


def _after(text: str, label: str) -> list[float]:
    """Return the numbers in the rest of the line after a label, which must be there."""
    match = re.search(re.escape(label) + "(.*)", text)
    assert match, f"no {label!r} in {text!r}"
    return _numbers(match[1])


def every_cell_runs_without_a_warning_and_pictures_come_out(lesson: SimpleNamespace) -> None:
    assert lesson.stderr == []
    assert len(lesson.pictures) >= 12


def the_forward_is_the_one_worked_out_by_hand(lesson: SimpleNamespace) -> None:
    assert _after(lesson.texts["one-sample"], "xhat") == [-1.667, 0.333, 0.333, 1.0]
    assert _numbers(lesson.texts["one-sample-check"]) == [0, 1]
    rows = [_numbers(line[13:]) for line in lesson.texts["invariance"].splitlines()]
    assert rows == [[-1.667, 0.333, 0.333, 1.0]] * 3
    assert "could not be broadcast" in lesson.texts["keepdims"]
    assert "two calls are equal: True" in lesson.texts["mended"]


def eps_outside_the_root_matters_for_small_rows_only(lesson: SimpleNamespace) -> None:
    lines = [_numbers(line) for line in lesson.texts["eps-table"].splitlines()[1:]]
    table = {std: (inside, outside) for std, inside, outside in lines}
    for std in (1, 0.1):
        assert abs(table[std][0] - table[std][1]) < 0.001
    assert table[0.001] == pytest.approx((0.3, 1), abs=0.02)
    assert table[0] == (0, 0)
    assert _after(lesson.texts["web-code"], "largest difference")[0] > 1


def the_backward_passes_its_check_and_the_check_is_best_near_1e_5(lesson: SimpleNamespace) -> None:
    moves = _after(lesson.texts["nudge"], "xhat moves by")
    assert len(moves) == 8
    assert all(moves)  # one input moves every output
    assert {place for place, move in enumerate(moves) if move > 0} == {2, 3, 5}
    for line in lesson.texts["jacobian"].splitlines():
        assert _numbers(line)[-1] < 1e-4
    for name in ("dx", "dweight", "dbias"):
        assert _after(lesson.texts["check"], name)[0] < 1e-9
    steps, errors = lesson.shown["check"]
    best = errors.index(min(errors))
    assert 1e-6 < steps[best] < 1e-4
    assert errors[0] > 1e4 * errors[best]
    assert errors[-1] > 1e4 * errors[best]


def layer_norm_lowers_the_loss_of_the_digits(lesson: SimpleNamespace) -> None:
    text = lesson.texts["train-run"]
    for optimizer in ("Momentum", "Adam"):
        with_norm, accuracy = _after(text, f"{optimizer}, with layer norm")
        without, other_accuracy = _after(text, f"{optimizer}, without")
        assert with_norm < 0.8 * without
        assert min(accuracy, other_accuracy) > 0.93
        assert abs(accuracy - other_accuracy) < 0.04  # "the test accuracy hardly differs"
        ratios = [a / b for a, b in zip(*lesson.shown["rates"][optimizer], strict=True)]
        assert all(ratio < 0.9 for ratio in ratios)  # "lower at every rate"
    gamma = lesson.shown["gamma"]
    assert max(gamma) - min(gamma) > 0.1


def the_package_and_the_frameworks_give_the_values_worked_out_by_hand(
    lesson: SimpleNamespace,
) -> None:
    for cell in ("package-layer", "package-training", "package-optimizers"):
        for line in lesson.texts[cell].splitlines():
            assert _after(line, "largest difference")[0] < 1e-12
    for cell in ("torch-layer", "torch-package", "keras-axis"):
        differences = re.findall(r"largest difference.* (\S+)$", lesson.texts[cell], re.MULTILINE)
        assert differences
        assert all(float(each) < 1e-5 for each in differences)
    assert "axis=[1, 2] gamma (3, 4)" in lesson.texts["keras-axis"]
    assert _after(lesson.texts["keras-eps"], "default epsilon") == [0.001]
    *_, keras_eps, ours, torch_eps, theirs = _after(lesson.texts["keras-eps"], "std 0.1")
    assert (keras_eps, torch_eps) == (1e-3, 1e-5)
    assert ours < 1e-5 < 0.01 < theirs
    assert _after(lesson.texts["keras-model"], "test accuracy")[0] > 0.9


def batch_norm_depends_on_the_batch_and_layer_norm_does_not(lesson: SimpleNamespace) -> None:
    rows = [_numbers(line) for line in lesson.texts["batch-norm"].splitlines() if "[" in line]
    assert rows[0] != rows[1]
    assert rows[2] == [0, 0, 0, 0]
    assert rows[3] == rows[4] == rows[5]
    assert _after(lesson.texts["modes"], "BatchNorm1d  train and eval differ by")[0] > 0.1
    assert _after(lesson.texts["modes"], "LayerNorm    train and eval differ by") == [0]
    assert _after(lesson.texts["rms-norm"], "x - mean")[-1] == 0


def float32_errors_are_what_the_text_says(lesson: SimpleNamespace) -> None:
    assert _after(lesson.texts["variance"], "smallest variance in one pass:")[0] < 0
    assert lesson.shown["variance"]["one pass"][4] > 1  # mean 10,000
    assert lesson.shown["variance"]["two passes"][4] < 1e-4
    ulp = {line[:27].strip(): _numbers(line)[-1] for line in lesson.texts["ulp"].splitlines()[1:]}
    assert ulp["package layernorm"] < 5
    assert ulp["ours, mean corrected"] < 10
    assert ulp["ours, float32"] > 1000
    assert ulp["PyTorch"] > 1000
    near_zero = [errors[0] for errors in lesson.shown["layer norm"].values()]
    assert max(near_zero) < 3e-6  # "there all of these are good"
    each, once, package = (
        _after(lesson.texts["bfloat16"], f"rounded {name}")[-1]
        for name in ("each step", "once", "package")
    )
    assert max(once, package) < each / 3


def post_norm_without_warm_up_does_not_learn_at_the_high_rate(lesson: SimpleNamespace) -> None:
    text = lesson.texts["prepost-picture"]
    losses = {line.split("  ")[0]: _numbers(line)[-1] for line in text.splitlines()[1:]}
    assert max(losses["lr 0.001: pre-norm"], losses["lr 0.001: post-norm"]) < 1
    assert losses["lr 0.005: post-norm"] > 2
    assert losses["lr 0.005: pre-norm"] < 1.2
    assert losses["lr 0.005: post-norm, warm-up"] < 2.1  # below guessing: it has begun to learn
    pre, post = (lesson.shown["last gradient"][name] for name in ("pre-norm", "post-norm"))
    assert pre[-1] < pre[0] / 2  # "shrinks under pre-norm only"
    assert post[-1] > post[0] / 1.5


CLAIMS = (
    every_cell_runs_without_a_warning_and_pictures_come_out,
    the_forward_is_the_one_worked_out_by_hand,
    eps_outside_the_root_matters_for_small_rows_only,
    the_backward_passes_its_check_and_the_check_is_best_near_1e_5,
    layer_norm_lowers_the_loss_of_the_digits,
    the_package_and_the_frameworks_give_the_values_worked_out_by_hand,
    batch_norm_depends_on_the_batch_and_layer_norm_does_not,
    float32_errors_are_what_the_text_says,
    post_norm_without_warm_up_does_not_learn_at_the_high_rate,
)


@pytest.mark.slow
def test_the_lesson_finds_what_its_text_says(run: ModuleType) -> None:
    lesson = execute(run)
    for claim in CLAIMS:  # one test, or each process of pytest-xdist would execute the lesson
        claim(lesson)


@pytest.mark.parametrize("name", ["LESSON", "TRANSLATION"])
def test_the_stored_notebook_has_no_outputs(run, name) -> None:
    notebook = run.read(getattr(run, name))
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_the_translation_has_the_code_of_the_lesson(run) -> None:
    translation, lesson = run.read(run.TRANSLATION), run.read(run.LESSON)
    run.check_code(run.code_cells(translation), run.code_cells(lesson))
    assert code_in_text(translation) == code_in_text(lesson)


def code_in_text(notebook: Any) -> list[str]:
    """Return the Python between the cells, without comments."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return [
        re.sub(r" *#.*", "", code) for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ]


def _notebook(**sources: str) -> Any:
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in sources.items()]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), *cells])


def test_a_translation_gets_the_outputs_of_its_cells(run) -> None:
    executed, translation = _notebook(one="1", two="2"), _notebook(one="1", two="2")
    for count, cell in enumerate(executed.cells[1:], 1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", text=f"of {cell.id}")]
    filled = run.with_outputs_of(executed, translation)
    assert [cell.outputs[0].text for cell in filled.cells[1:]] == ["of one", "of two"]
    assert [cell.execution_count for cell in filled.cells[1:]] == [1, 2]
    assert translation.cells[1].outputs == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"one": "1"}, "two; copy them"),
        ({"two": "2", "one": "1"}, "in another order"),
        ({"one": "1", "two": "3"}, "the code of two"),
    ],
)
def test_a_translation_with_other_code_is_an_error(run, other, message) -> None:
    with pytest.raises(ValueError, match=message):
        run.with_outputs_of(_notebook(one="1", two="2"), _notebook(**other))


def test_the_lesson_says_what_is_missing() -> None:
    code = (
        "import sys; from lesson import requirements; from lesson.__main__ import main; "
        "requirements.PACKAGES = ('torch', 'no_such_package'); sys.argv[1:] = []; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the lesson needs no_such_package" in done.stderr
