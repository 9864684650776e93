"""layernorm.torch.inspect: what it finds, and that it is right."""

import dataclasses
import html.parser
import math
import sys
from types import SimpleNamespace

import foreign_norms as foreign
import numpy as np
import pytest
from own_process import run
from short_inspections import times_are_short  # noqa: F401

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from inspected_models import COLS, Around, by_name, make, rows  # noqa: E402
from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm import accuracy  # noqa: E402
from layernorm.inspection import findings, measure, tables  # noqa: E402
from layernorm.torch import accelerated  # noqa: E402
from layernorm.torch.conversion.converted import is_converted  # noqa: E402
from layernorm.torch.inspection import calls, judging, recording, reporting, timing  # noqa: E402


def test_every_norm_is_found_in_the_order_of_the_calls():
    report = ours.inspect(make(), rows(5, COLS))
    found = {each.name: (each.calls, each.computes, each.convert) for each in report.norms}
    function = "no: a function, which accelerate() takes"
    assert found == {
        "(the model) layer_norm": (1, "layer_norm", function),
        "own": (1, "rms_norm", "ours"),
        "llama_norm": (1, "rms_norm", "yes"),
        "first": (2, "layer_norm", "yes"),
        "(the model) rms_norm": (1, "rms_norm", function),
        "batch_norm": (1, None, "no: a BatchNorm1d, which is neither layer norm nor RMS norm"),
        "never_norm": (0, None, "yes"),
    }
    assert list(found) == [each.name for each in report.norms]
    assert report.mode == "training"


def test_the_model_of_one_norm_is_that_norm():
    (norm,) = ours.inspect(nn.LayerNorm((3, COLS)), rows(5, 3, COLS)).norms
    assert (norm.name, norm.normalized_shape, norm.x_shape) == (
        "(the model)",
        (3, COLS),
        (5, 3, COLS),
    )
    assert norm.eps == 1e-5


def test_errors_are_those_of_the_measure():
    model, x = nn.Sequential(nn.LayerNorm(COLS), nn.Tanh()), rows(7, COLS, mean=3e4)
    (norm,) = ours.inspect(model, x).norms
    y = model[0](x).detach()
    assert norm.errors["y"] == accuracy.y_error(y.numpy(), x.numpy(), np.ones(COLS), np.zeros(COLS))
    assert norm.errors["y"] > norm.bounds["y"] == accuracy.BOUNDS["float32"].y
    assert norm.gradient == "the output"
    ours.convert(model)
    (norm,) = ours.inspect(model, x).norms
    assert norm.errors.keys() == {"y", "dx", "dweight", "dbias"}
    assert all(error <= norm.bounds[name] for name, error in norm.errors.items())
    assert norm.convert == "ours"


def test_a_wrong_backward_is_seen(monkeypatch):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return F.layer_norm(x, (COLS,))

        @staticmethod
        def backward(context, dy):
            return dy

    class Norm(nn.LayerNorm):
        def forward(self, x):
            return Wrong.apply(x)

    # Its forward is not known to `convert`; called as a function of PyTorch's, it is.
    (norm,) = ours.inspect(Norm(COLS), rows(4, COLS)).norms
    assert norm.errors == {}
    assert norm.convert.startswith("no: a Norm, ")

    watched = calls.Watched(norm, None, function=F.layer_norm)
    x = rows(4, COLS)
    autocast = calls.autocast_of("cpu")
    watched.call = calls.Call((x, (COLS,)), {}, F.layer_norm(x, (COLS,)), None, autocast)
    watched.dy = rows(4, COLS, mean=1)
    judging.judge(watched)
    assert norm.errors["dx"] < 5
    monkeypatch.setattr(judging, "repeat", lambda watched, call: Wrong.apply(call.x))
    judging.judge(watched)
    assert norm.errors["dx"] > 1e3


def test_rows_far_from_zero_are_told():
    x = rows(6, COLS)
    x[2] += 1000
    x[4] = 5.0
    (norm,) = ours.inspect(nn.LayerNorm(COLS), x).norms
    assert norm.rows.count == 6
    assert norm.rows.mean_over_std == math.inf
    assert norm.rows.below_eps == 1 / 6
    x[4] = x[2]
    (norm,) = ours.inspect(nn.LayerNorm(COLS), x).norms
    exact = x[2].double()
    expected = float(exact.mean().abs() / exact.std(correction=0))
    assert norm.rows.mean_over_std == pytest.approx(expected, rel=1e-6)
    assert norm.rows.typical_mean_over_std < 1
    (norm,) = ours.inspect(nn.RMSNorm(COLS), x).norms
    assert norm.rows.mean_over_std is None


def test_parameters_and_dead_units():
    norm = nn.LayerNorm(COLS)
    with torch.no_grad():
        norm.weight[:3] = torch.tensor([0.0, 9e-4, -2.0])
        norm.bias[5] = 7.0
    (found,) = ours.inspect(norm, rows(4, COLS)).norms
    assert (found.weight.smallest, found.weight.largest, found.dead) == (-2.0, 1.0, 2)
    assert (found.bias.smallest, found.bias.largest) == (0.0, 7.0)
    with torch.no_grad():
        norm.weight[4] = 1e6  # does not move the median
    (found,) = ours.inspect(norm, rows(4, COLS)).norms
    assert found.dead == 2
    zero_centered = ours.RMSNorm(COLS, zero_centered_weight=True)
    with torch.no_grad():
        zero_centered.weight[0] = -1.0
    (found,) = ours.inspect(zero_centered, rows(4, COLS)).norms
    assert (found.weight.smallest, found.weight.largest, found.dead) == (0.0, 1.0, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type(dtype):
    pytest.importorskip("ml_dtypes")
    model = nn.Sequential(ours.LayerNorm(COLS), ours.RMSNorm(COLS)).to(dtype)
    for norm in ours.inspect(model, rows(5, COLS, mean=2).to(dtype)).norms:
        assert norm.x_type == norm.y_type == norm.weight.type == str(dtype).removeprefix("torch.")
        bounds = accuracy.BOUNDS[norm.x_type]
        assert (norm.bounds["y"], norm.bounds["dx"]) == (bounds.y, bounds.dx)
        assert norm.bounds["dweight"] == bounds.parameter
        assert all(error <= norm.bounds[name] for name, error in norm.errors.items())


def test_axes_gates_and_residuals():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.channels = ours.LayerNorm(3, axis=1)
            self.added = ours.RMSNorm(COLS)
            self.gated = ours.LayerNorm(COLS)
            self.theirs = foreign.GatedNorm(COLS)

        def forward(self, x, z):
            y, total = self.added(self.channels(x), residual=z)
            return self.theirs(self.gated(y, gate=z, norm_before_gate=False), total)

    report = ours.inspect(make(Model), rows(5, 3, COLS), z=rows(5, 3, COLS, mean=1))
    found = by_name(report)
    assert found["channels"].normalized_shape == (3,)
    assert found["added"].errors.keys() == {"y"}
    for each in found.values():
        assert each.errors["y"] <= each.bounds["y"], each
    assert found["gated"].bounds["dx"] == accuracy.GATED_BOUND
    assert found["theirs"].convert == "yes"
    assert found["theirs"].errors.keys() >= {"y", "dx", "dweight"}


def test_only_the_first_samples_of_a_large_call_are_judged(monkeypatch):
    x = rows(6, COLS)
    x[4:] = float("nan")
    monkeypatch.setattr(measure, "MOST_ELEMENTS", 4 * COLS + 1)
    (norm,) = ours.inspect(nn.LayerNorm(COLS), x).norms
    assert norm.rows.count == 4
    assert norm.errors["dx"] < 5
    assert norm.x_shape == (6, COLS)
    gated = Around(lambda self, x: self.norm(x, gate=x + 1), norm=ours.LayerNorm(COLS))
    report = ours.inspect(gated, x)
    assert report.notes == ["no norm is left to convert, so nothing was compared by time"]
    assert report.norms[0].errors["dx"] <= report.norms[0].bounds["dx"]


def test_times_are_of_what_can_be_replaced():
    report = ours.inspect(make(), rows(5, COLS))
    for each in report.norms:
        is_replaced = each.calls > 0 and (each.convert == "yes" or "accelerate" in each.convert)
        assert (each.forward is not None) == (each.training is not None) == is_replaced
        assert (each.share is None) == (each.calls == 0)
    assert 0 < report.share < 1
    assert report.forward.own > 0
    assert report.training.gain == report.training.own / report.training.ours
    of_ours = ours.inspect(ours.LayerNorm(COLS), rows(5, COLS))
    assert of_ours.forward is None
    assert "no norm is left to convert" in str(of_ours)


def test_a_norms_share_is_that_of_its_own_time(monkeypatch):
    now = 0

    class TimedNorm(nn.Module):
        def __init__(self, seconds) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x):
            nonlocal now
            now += self.seconds
            return x

    def function(self, x):
        nonlocal now
        now += 1
        return self.slow(self.fast(self.fast(x)))

    for each in (recording, timing):
        monkeypatch.setattr(each, "time", SimpleNamespace(perf_counter=lambda: now))
    report = ours.inspect(Around(function, slow=TimedNorm(3), fast=TimedNorm(1)), rows(5, COLS))
    assert [each.share for each in report.norms] == [2 / 6, 3 / 6, None]
    assert report.share == 5 / 6


def test_the_first_of_several_calls_is_what_is_measured():
    model = Around(lambda self, x: self.norm(self.norm(x)[:2]))
    (norm,) = ours.inspect(model, rows(5, COLS, mean=100)).norms
    assert (norm.calls, norm.x_shape) == (2, (5, COLS))
    assert norm.rows.mean_over_std > 50


def test_ours_is_what_is_timed_as_ours(monkeypatch):
    seen = []

    def medians(calls, *, around, seconds):
        for name, call in calls.items():
            with around(name):
                seen.append((name, bool(accelerated._holders), is_converted(model.first)))
                call()
        return dict.fromkeys(calls, 1.0)

    monkeypatch.setattr(measure, "medians", medians)
    model = make()
    ours.inspect(model, rows(5, COLS))
    functions = {("ours", True, False)}  # by themselves
    modules = {("ours", False, True), ("ours", False, False)}  # `first`, and others
    assert set(seen) == {("own", False, False), ("ours", True, True), *functions, *modules}


@pytest.mark.starts_python
def test_what_measures_is_loaded_by_the_first_call_only():
    code = (
        "import sys, torch, layernorm.torch as ln; measures = 'layernorm.inspection.measure'; "
        "assert measures not in sys.modules and 'layernorm.accuracy' not in sys.modules; "
        "ln.inspect(torch.nn.LayerNorm(3), torch.ones(2, 3)); assert measures in sys.modules"
    )
    run([sys.executable, "-c", code])


def test_the_gradient_is_that_of_y_before_an_operation_in_place(monkeypatch):
    dys = []
    monkeypatch.setattr(reporting, "judge", lambda watched: dys.append(watched.dy))
    for in_place in (False, True):
        model = nn.Sequential(nn.LayerNorm(COLS), nn.ReLU(in_place))
        ours.inspect(model, rows(5, COLS))
    assert torch.equal(*dys)
    assert (dys[0] == 0).any()


def test_a_norm_under_autocast_is_measured_under_it():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(COLS, COLS), nn.LayerNorm(COLS)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.norm(self.linear(x))

    pytest.importorskip("ml_dtypes")
    with torch.autocast("cpu", torch.bfloat16):
        autocast = calls.autocast_of("cpu")
    x = rows(5, COLS)
    called = calls.Watched(findings.Norm("", ""), nn.Linear(COLS, COLS))
    assert calls.repeat(called, calls.Call((x,), {}, x, None, autocast)).dtype == torch.bfloat16
    report = ours.inspect(Model(), x)
    assert report.notes == []
    assert report.norms[0].x_type == "bfloat16"
    assert report.norms[0].errors.keys() == {"y", "dx", "dweight", "dbias"}


def test_without_a_gradient_dy_is_random():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(COLS)

        @torch.no_grad()
        def forward(self, x):
            return self.norm(x)

    report = ours.inspect(Frozen(), rows(5, COLS))
    assert report.norms[0].gradient == "random"
    assert report.norms[0].errors["dx"] < 5
    assert report.training is None


@dataclasses.dataclass
class Result:
    rows: torch.Tensor
    names: tuple[str, ...] = ("a",)


OUTPUTS = {
    "nested": (lambda y: ([y, {"y": (y, None)}], "text"), "the output"),
    "dataclass": (lambda y: [Result(y)], "the output"),
    "none": (lambda y: None, "random"),
    "integers": (lambda y: y.argmax(-1), "random"),
    "complex": (torch.fft.fft, "random"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_gradients_come_from_whatever_floating_point_outputs_there_are(kind):
    function, gradient = OUTPUTS[kind]
    model = Around(lambda self, x: function(self.linear(self.norm(x))))
    report = ours.inspect(model, rows(5, COLS))
    assert report.norms[0].gradient == gradient
    assert report.norms[0].errors["dx"] < 5
    assert (report.training is None) == (gradient == "random")


def test_dy_is_the_gradient_of_the_output():
    """The output's gradient is random; what is seen behind a factor is that times the factor."""
    seen = {}

    def judge(watched):
        seen[watched.entry.name] = watched.dy.clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "judge", judge)
        patch.setattr(reporting, "time_norm", lambda *given: None)
        ours.inspect(Around(lambda self, x: self.norm(x)), rows(5, COLS))
        once = seen["norm"]
        ours.inspect(Around(lambda self, x: 3 * self.norm(x)), rows(5, COLS))
    assert torch.equal(seen["norm"], 3 * once)


def test_the_part_that_is_judged_has_whole_rows(monkeypatch):
    monkeypatch.setattr(measure, "MOST_ELEMENTS", 100)
    assert measure.part_that_fits((2, 5, 10), -1) == (slice(None),) * 3
    assert measure.part_that_fits((1, 50, 10), -1) == (slice(1), slice(10), slice(None))
    assert measure.part_that_fits((8, 50, 10), (-1,)) == (slice(1), slice(10), slice(None))
    assert measure.part_that_fits((30, 7, 10), 0) == (slice(None), slice(1), slice(3))
    assert measure.part_that_fits((30, 40), (0, 1)) == (slice(None),) * 2
    for model, shape, count in (
        (nn.LayerNorm((30, COLS)), (30, COLS), 1),
        (ours.LayerNorm(30, axis=0), (30, COLS), 3),
        (Around(lambda self, x: F.layer_norm(x, (COLS,))), (1, 30, COLS), 4),
    ):
        (norm, *_) = ours.inspect(model, rows(*shape)).norms
        assert norm.rows.count == count
        assert norm.errors["dx"] < 5


def test_a_gated_norm_without_its_gate():
    model = Around(lambda self, x: self.gated(x), gated=foreign.GatedNorm(COLS))
    assert ours.inspect(model, rows(5, COLS)).norms[0].errors["y"] < 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite(value):
    x = rows(5, COLS)
    x[1, 2] = value
    (norm,) = ours.inspect(nn.LayerNorm(COLS), x).norms
    assert norm.errors["y"] < 5
    assert "nan" in str(ours.inspect(nn.LayerNorm(COLS), x))


@pytest.mark.parametrize("shape", [(COLS,), (1, COLS), (0, COLS)])
def test_few_rows(shape):
    (norm,) = ours.inspect(nn.LayerNorm(COLS), rows(*shape)).norms
    assert norm.x_shape == shape
    assert norm.rows.count == (0 if 0 in shape else 1)


# how it is shown


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_data(self, text):
        self.cells.append(text.strip())


def test_the_page_needs_no_other_file_and_escapes_names(tmp_path):
    pytest.importorskip("matplotlib")
    names = ("<script>norm", "<b>norm", "$\\frac{$")  # matplotlib takes the last for a formula
    model = nn.ModuleDict({name: nn.LayerNorm(COLS) for name in names})
    model.forward = lambda x: model[names[0]](model[names[2]](x))
    report = ours.inspect(model, rows(5, COLS))
    report.save_html(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert all(each.startswith("#") for each in page.links), page.links
    assert page.tags.count("svg") == 1
    assert not {"script", "b"} & set(page.tags)
    assert "<script>norm" in page.cells


def test_the_text_has_a_line_for_each_norm():
    report = ours.inspect(make(), rows(5, COLS))
    for each in report.norms:
        assert sum(line.startswith(each.name) for line in str(report).splitlines()) >= 2
    assert "never_norm was not called." in str(report)
    far = ours.inspect(nn.LayerNorm(COLS), rows(7, COLS, mean=3e4))
    assert f" {tables.number(far.norms[0].errors['y'])}*" in str(far)
    assert "Norms with larger errors than ours may have: 1; the largest: " in str(far)
    assert dataclasses.asdict(report)["norms"][1]["name"] == "own"
