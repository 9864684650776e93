"""layernorm.torch.inspect: what it finds, that it is right, and that it leaves no trace."""

import copy
import dataclasses
import html.parser
import math
from pathlib import Path

import foreign_norms as foreign
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm import accuracy  # noqa: E402
from layernorm.inspection import measure  # noqa: E402
from layernorm.torch import inspection  # noqa: E402

COLS = 24


@pytest.fixture(autouse=True)
def times_are_short(monkeypatch):
    for each in ("_OF_A_NORM", "_OF_THE_MODEL"):
        monkeypatch.setattr(inspection, each, 0.0)


class Block(nn.Module):
    """Calls norms of every kind, one of them twice and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.never_norm = nn.LayerNorm(3)
        self.first = nn.LayerNorm(COLS, eps=1e-3)
        self.llama_norm = foreign.LlamaNorm(COLS)
        self.own = ours.RMSNorm(COLS, zero_centered_weight=True)
        self.batch_norm = nn.BatchNorm1d(COLS)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = self.own(F.layer_norm(x, (COLS,)))
        y = self.first(self.first(self.llama_norm(self.drop(y))))
        return {"y": self.batch_norm(F.rms_norm(y, (COLS,))), "count": 3}


def make(kind=Block):
    torch.manual_seed(3)
    model = kind()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each), alpha=0.1)
    return model


def rows(*shape, mean=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4)) + mean


def by_name(report):
    return {each.name: each for each in report.norms}


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


def test_a_wrong_backward_is_seen():
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

    found = inspection._FUNCTIONS[F.layer_norm]
    inspection._FUNCTIONS[Wrong.apply] = found
    watched = inspection._Watched(norm, None, function=F.layer_norm)
    x = rows(4, COLS)
    call = inspection._Call((x, (COLS,)), {}, F.layer_norm(x, (COLS,)), None)
    watched.call, watched.dy = call, rows(4, COLS, mean=1)
    del inspection._FUNCTIONS[Wrong.apply]
    inspection._judge(watched)
    assert norm.errors["dx"] < 5
    run, inspection._run = inspection._run, lambda watched, call: Wrong.apply(call.x)
    try:
        inspection._judge(watched)
    finally:
        inspection._run = run
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


def test_ours_is_what_is_timed_as_ours(monkeypatch):
    seen = []

    def medians(calls, *, around, seconds):
        for name, call in calls.items():
            with around(name):
                seen.append(
                    (name, type(model.first).__name__, inspection.is_converted(model.first))
                )
                call()
        return dict.fromkeys(calls, 1.0)

    monkeypatch.setattr(measure, "medians", medians)
    model = make()
    ours.inspect(model, rows(5, COLS))
    assert ("own", "LayerNorm", False) in seen
    assert ("ours", "LayerNorm", True) in seen
    assert ("own", "LayerNorm", True) not in seen


# no trace


def state(model):
    """All that a run could change."""
    return [
        *(copy.deepcopy(list(model.state_dict().items()))),
        *((name, each.grad, each.requires_grad) for name, each in model.named_parameters()),
        *((type(each), sorted(vars(each)), each.training) for each in model.modules()),
        *(
            (len(hooks), sorted(vars(each)))
            for each in model.modules()
            for hooks in (each._forward_hooks, each._forward_pre_hooks, each._backward_hooks)
        ),
        [each.data_ptr() for each in (*model.parameters(), *model.buffers())],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


def assert_same(before, after):
    assert len(before) == len(after)
    for was, now in zip(before, after, strict=True):
        if isinstance(was, torch.Tensor):
            assert torch.equal(was, now)
        elif isinstance(was, tuple | list):
            assert_same(was, now)
        else:
            assert was is now or was == now


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training):
    model, x = make().train(training), rows(5, COLS)
    model.first.weight.grad = torch.ones(COLS)
    model.llama_norm.weight.requires_grad_(False)
    before, of_x = state(model), x.clone()
    ours.inspect(model, x)
    assert_same(before, state(model))
    assert torch.equal(x, of_x)
    assert F.layer_norm.__module__ == "torch.nn.functional"


def test_a_model_that_changes_its_input_gets_a_copy():
    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(COLS)

        def forward(self, x):
            return self.norm(x.add_(1))

    x = rows(5, COLS)
    kept = x.clone()
    ours.inspect(Adding(), x)
    assert torch.equal(x, kept)


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(COLS)
        self.batch_norm = nn.BatchNorm1d(COLS)

    def forward(self, x):
        self.batch_norm(self.norm(x))
        raise KeyError("no such token")


def test_a_model_that_raises_is_left_as_it_was():
    model = Raising()
    before = state(model)
    with pytest.raises(RuntimeError, match=r"Raising raised KeyError .* after 2 calls .* token"):
        ours.inspect(model, rows(5, COLS))
    assert_same(before, state(model))


# input that is wrong


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(COLS)

    def forward(self, x):
        return self.norm(x).to_sparse()


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("model", TypeError, "of type str, expected a torch.nn.Module"),
        (nn.Linear(COLS, 3), ValueError, "Linear has no norm"),
        (nn.ModuleDict({"norm": nn.LayerNorm(3), "mlp": nn.ReLU()}), RuntimeError, "raised"),
        (Sparse(), TypeError, r"layout torch.sparse_coo, expected dense .* to_dense\(\)"),
        (nn.Sequential(nn.LazyLinear(3), nn.LayerNorm(3)), ValueError, "lazy modules"),
    ],
)
def test_bad_input_is_said_clearly(model, error, words):
    with pytest.raises(error, match=words):
        ours.inspect(model, rows(5, COLS))


def test_norms_that_are_not_called_are_named():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.LayerNorm(COLS)

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="called none of its norms, idle"):
        ours.inspect(Idle(), rows(5, COLS))


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


def test_bfloat16_without_ml_dtypes_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        ours.inspect(nn.LayerNorm(COLS).bfloat16(), rows(5, COLS).bfloat16())


@pytest.mark.parametrize("shape", [(COLS,), (1, COLS), (0, COLS)])
def test_few_rows(shape):
    (norm,) = ours.inspect(nn.LayerNorm(COLS), rows(*shape)).norms
    assert norm.x_shape == shape
    assert norm.rows.count == (0 if 0 in shape else 1)


def test_a_compiled_model_is_inspected_as_the_original():
    model = nn.Sequential(nn.LayerNorm(COLS))
    report = ours.inspect(torch.compile(model), rows(5, COLS))
    assert [each.name for each in report.norms] == ["0"]


# real models


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_llama(dtype):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("ml_dtypes")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=99,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().to(getattr(torch, dtype))
    ids = torch.randint(0, 99, (2, 8))
    expected, before = model(ids).logits, state(model)
    report = ours.inspect(model, input_ids=ids)
    assert_same(before, state(model))
    assert torch.equal(model(ids).logits, expected)
    assert [each.kind.rpartition(".")[2] for each in report.norms] == ["LlamaRMSNorm"] * 5
    assert {each.convert for each in report.norms} == {"yes"}
    assert {each.gradient for each in report.norms} == {"the output"}
    assert all(each.errors.keys() == {"y", "dx", "dweight"} for each in report.norms)
    assert report.training is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_minilm(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    from minilm import requirements

    if requirements.missing():
        pytest.skip(requirements.message())
    from minilm import model as minilm

    bert, pairs = minilm.load(8)
    batch = minilm.batches([rest for _, rest in pairs], 8)[0]
    in_float32 = ours.inspect(bert, **batch)
    assert len(in_float32.norms) == 13
    for norm in in_float32.norms:
        assert all(error <= norm.bounds[name] for name, error in norm.errors.items()), norm
    assert in_float32.norms[-1].dead == 3
    in_bfloat16 = ours.inspect(bert.bfloat16(), **batch)
    # PyTorch sums the gradients in bfloat16.
    assert all(each.errors["dbias"] > 1000 for each in in_bfloat16.norms)
    ours.convert(bert)
    converted = ours.inspect(bert, **batch)
    assert all(each.errors["dbias"] <= each.bounds["dbias"] for each in converted.norms)


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
    model = nn.ModuleDict({"<script>norm": nn.LayerNorm(COLS)})
    model.forward = lambda x: model["<script>norm"](x)
    report = ours.inspect(model, rows(5, COLS))
    report.save_html(tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert all(each.startswith("#") for each in page.links), page.links
    assert page.tags.count("svg") == 1
    assert "script" not in page.tags
    assert "<script>norm" in page.cells


def test_the_text_has_a_line_for_each_norm():
    report = ours.inspect(make(), rows(5, COLS))
    for each in report.norms:
        assert sum(line.startswith(each.name) for line in str(report).splitlines()) >= 2
    assert "never_norm was not called." in str(report)
    assert dataclasses.asdict(report)["norms"][1]["name"] == "own"
