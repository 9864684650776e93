"""The picture of `layernorm demo`: what is computed for it, and what each panel shows."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from layernorm.cli.demo import digits, plot, statistics
from layernorm.cli.demo.networks import RECIPES, NormCall
from layernorm.cli.demo.training import Run, train

EPOCHS = 2


@pytest.fixture(scope="module")
def data():
    return digits.load_digits()


@pytest.fixture(scope="module")
def runs(data):
    return [train("numpy", recipe, data, EPOCHS) for recipe in RECIPES]


@pytest.fixture
def draw(data, monkeypatch):
    """Return a function that draws runs and returns the figure's panels by their title."""
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, file: figures.append(figure))

    def panels_of(runs):
        plot.draw_training(runs, data, "unused.png")
        return {axes.get_title(loc="left"): axes for axes in figures[-1].axes}

    yield panels_of
    for figure in figures:
        plot.open_pyplot().close(figure)


def beside(run: Run, framework: str) -> Run:
    """Return a run of another framework with the same curves, and three other bits."""
    return Run(
        framework, run.optimizer, run.loss, run.test_accuracy, run.parameters, 1000, other_bits=3
    )


def test_the_history_of_a_parameter_goes_from_its_start_to_what_was_learned(runs) -> None:
    for run in runs:
        learned = {each["name"]: each for each in run.parameters}
        for place, cols in enumerate(digits.SIZES[1:-1]):
            for name, start in (("weight", 1), ("bias", 0)):
                history = run.parameter_history(place, name)
                assert history.shape == (EPOCHS + 1, cols)
                assert (history[0] == start).all()
                assert (history[1] != history[2]).any()
                described = learned[f"layer norm {place + 1}, {name}"]
                assert history[-1].min() == described["min"]
                assert history[-1].max() == described["max"]


def test_the_answers_to_test_images_are_those_that_the_accuracy_counts(runs, data) -> None:
    for run in runs:
        assert (run.test_answers == data.test_labels).mean() == run.test_accuracy[-1]
        assert [len(call.x) for call in run.test_norm_calls] == [digits.TEST_IMAGES] * 2


def test_the_arrays_of_a_run_stay_out_of_its_json(runs) -> None:
    printed = runs[0].as_dict()
    assert json.loads(json.dumps(printed)) == printed
    assert set(printed) == {
        *("framework", "optimizer", "loss", "test_accuracy", "parameters"),
        *("norm_outputs", "other_bits", "seconds"),
    }


def test_normalized_rows_have_mean_0_and_std_1_before_weight_and_bias() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, (7, 63)).astype(np.float32)
    weight, bias = rng.normal(2, 1, (2, 63)).astype(np.float32)
    xhat = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    call = NormCall(x, weight, bias, xhat * weight + bias)
    entering, normalized, leaving = statistics.stages(call)
    assert entering is call.x
    assert leaving is call.y
    described = statistics.row_statistics(normalized)
    np.testing.assert_allclose(described.mean, 0, atol=1e-6)
    np.testing.assert_allclose(described.std, 1, rtol=1e-5)  # eps is 1e-5, the variance 9


def test_rows_are_described_each_by_itself() -> None:
    rows = np.stack([np.arange(101), 1000 - 10 * np.arange(101)]).astype(np.float32)
    described = statistics.row_statistics(rows)
    assert described.mean.tolist() == [50, 500]
    assert described.low.tolist() == [5, 50]
    assert described.high.tolist() == [95, 950]
    np.testing.assert_allclose(described.std, np.sqrt((101**2 - 1) / 12) * np.array([1, 10]))


def test_epoch_means_are_over_the_steps_of_an_epoch() -> None:
    assert statistics.epoch_means([1, 2, 6, 10, 20, 60], 2).tolist() == [3, 30]


def test_the_first_image_of_each_digit_and_the_first_misread_are_shown() -> None:
    labels = np.array([3, 3, 1, 1, 0, 0, 2])
    answers = np.array([3, 3, 7, 1, 2, 4, 2])
    right, wrong = statistics.images_to_show(answers, labels, most_wrong=2)
    assert right.tolist() == [3, 6, 0]  # no 0 is read right
    assert wrong.tolist() == [2, 4]


def test_the_picture_is_a_png_of_the_size_that_is_stated(runs, data, tmp_path) -> None:
    file = tmp_path / "demo.png"
    plot.draw_training([*runs, beside(runs[0], "torch")], data, file)
    header = file.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", header[16:]) == tuple(120 * inches for inches in plot.SIZE)


def test_losses_and_accuracies_of_all_runs_are_drawn(runs, draw) -> None:
    others = [beside(run, name) for name in ("torch", "jax") for run in runs]
    panels = draw([*runs, *others])
    # Two lines for each run in NumPy: of the steps, and of the epochs.
    lengths = sorted(len(line.get_ydata()) for line in panels["Training loss"].lines)
    assert lengths == [EPOCHS] * 6 + [len(runs[0].loss)] * 2
    drawn = [list(line.get_ydata()) for line in panels["Test accuracy"].lines]
    assert drawn[:6] == [run.test_accuracy for run in [*runs, *others]]
    legend = [text.get_text() for text in panels["Test accuracy"].get_legend().get_texts()]
    assert legend == ["NumPy, SGD, momentum 0.9", "NumPy, Adam", "PyTorch", "JAX"]
    note = panels["Training loss"].texts[-1].get_text()
    assert "losses within 0e+00" in note
    assert "other bits in 12 of 4,000 outputs" in note


def test_a_single_epoch_is_seen(runs, draw) -> None:
    one = [
        SimpleNamespace(**{**vars(run), "loss": run.loss[:22], "test_accuracy": [0.5]})
        for run in runs
    ]
    assert {style["marker"] for style in plot._styles(one)} == {"o"}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_each_element_of_a_parameter_has_a_line_in_each_run(runs, draw, place, name) -> None:
    symbol = {"weight": "\N{GREEK SMALL LETTER GAMMA}", "bias": "\N{GREEK SMALL LETTER BETA}"}[name]
    axes = draw(runs)[f"{name.capitalize()} {symbol} of layer norm {place + 1}"]
    *elements, start = [line.get_ydata() for line in axes.lines]
    assert set(start) == {1 if name == "weight" else 0}
    for index, run in enumerate(runs):
        expected = run.parameter_history(place, name).T
        np.testing.assert_array_equal(elements[index::2], expected)
        assert {line.get_color() for line in axes.lines[index:-1:2]} == {plot.OPTIMIZERS[index]}


def test_the_activations_are_those_around_the_last_layer_norm(runs, draw) -> None:
    panels = draw(runs)
    call = runs[0].test_norm_calls[1]
    order = call.x.astype(np.float64).std(axis=1).argsort()
    for title, rows in (("Entering layer norm 2", call.x), ("Leaving layer norm 2", call.y)):
        means = panels[title].lines[0].get_ydata()
        np.testing.assert_allclose(means, rows.mean(axis=1)[order], atol=1e-6)
    np.testing.assert_allclose(panels["Normalized"].lines[0].get_ydata(), 0, atol=1e-6)
    dots = {
        each.get_label(): each.get_offsets()
        for each in panels["Each image's mean and std"].collections
    }
    np.testing.assert_allclose(dots["normalized"], np.tile([0, 1], (360, 1)), atol=1e-4)
    for label, rows in (("entering", call.x), ("leaving", call.y)):
        expected = np.stack([rows.mean(axis=1), rows.std(axis=1)], axis=1)
        np.testing.assert_allclose(dots[label], expected, atol=1e-5)


def test_an_answer_says_what_it_should_have_been_where_it_is_wrong(runs, data, draw) -> None:
    axes = draw(runs)["Answers to test images after training with SGD, momentum 0.9"]
    *answers, subtitle = axes.texts
    assert [text.get_text() for text in answers[:10]] == [str(digit) for digit in range(10)]
    assert {text.get_color() for text in answers[:10]} == {plot.RIGHT}
    wrong = np.flatnonzero(runs[0].test_answers != data.test_labels)
    assert [text.get_text() for text in answers[10:]] == [
        f"{runs[0].test_answers[image]}\nnot {data.test_labels[image]}" for image in wrong[:8]
    ]
    assert {text.get_color() for text in answers[10:]} == {plot.WRONG}
    assert f"{len(wrong)} misread (8 shown)" in subtitle.get_text()
    strip = axes.images[0].get_array()
    first_nine = data.test_images[np.flatnonzero(data.test_labels == 9)].reshape(-1, 8, 8)
    assert any((strip[1:, 91:99] == image).all() for image in first_nine)
