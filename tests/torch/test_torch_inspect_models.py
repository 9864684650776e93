"""layernorm.torch.inspect leaves models as they were, and says clearly what it cannot do."""

import copy
from pathlib import Path

import pytest
from short_inspections import times_are_short  # noqa: F401

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from inspected_models import COLS, Around, make, rows  # noqa: E402
from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm.torch.inspection import reporting  # noqa: E402

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


def test_a_function_that_somebody_has_replaced_stays_replaced(monkeypatch):
    theirs, called = F.rms_norm, []

    def replaced(*args, **keywords):
        called.append(args)
        return theirs(*args, **keywords)

    monkeypatch.setattr(F, "rms_norm", replaced)
    ours.inspect(Around(lambda self, x: F.rms_norm(x, (COLS,))), rows(5, COLS))
    assert F.rms_norm is replaced
    assert called


def test_a_norm_that_cannot_be_called_again_is_noted(monkeypatch):
    def judge(watched):
        if watched.entry.name == "0":
            raise LookupError("once only")

    monkeypatch.setattr(reporting, "judge", judge)
    report = ours.inspect(nn.Sequential(nn.LayerNorm(COLS), nn.LayerNorm(COLS)), rows(5, COLS))
    assert report.notes == [
        "0 was not measured: its call, made again, raised LookupError: once only"
    ]
    assert report.norms[0].forward is None
    assert report.norms[1].forward is not None


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
        (nn.LayerNorm(COLS, device="meta"), ValueError, "on the meta device, without numbers"),
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


def test_bfloat16_without_ml_dtypes_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        ours.inspect(nn.LayerNorm(COLS).bfloat16(), rows(5, COLS).bfloat16())


def test_inference_mode_inside_and_outside():
    def inside(self, x):
        with torch.inference_mode():
            return self.norm(x)

    (norm,) = ours.inspect(Around(inside), rows(5, COLS)).norms
    assert norm.errors["dx"] < 5
    model = Around(lambda self, x: self.norm(x))
    with torch.inference_mode():
        (norm,) = ours.inspect(model, rows(5, COLS)).norms
    assert norm.gradient == "the output"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks(reentrant):
    def block(self, x):
        again = torch.utils.checkpoint.checkpoint
        return again(lambda x: self.linear(self.norm(x)), self.linear(x), use_reentrant=reentrant)

    model = Around(block)
    before = state(model)
    (norm,) = ours.inspect(model, rows(5, COLS)).norms
    assert norm.calls == 1
    assert norm.gradient == ("random" if reentrant else "the output")
    assert norm.errors["dweight"] < 5
    assert_same(before, state(model))


def test_norms_that_cannot_be_measured_are_noted():
    class ThreeNorm(nn.Module):
        def forward(self, x):
            return x, x, x

    model = Around(lambda self, x: self.three(torch.func.vmap(self.norm)(x)), three=ThreeNorm())
    report = ours.inspect(model, rows(5, COLS))
    assert [(each.calls, each.errors) for each in report.norms] == [(1, {}), (1, {})]
    assert report.notes[0].endswith("tensor: norm, three")


def test_a_backward_that_raises_is_noted():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, dy):
            raise KeyError("no backward")

    report = ours.inspect(Around(lambda self, x: Wrong.apply(self.norm(x))), rows(5, COLS))
    assert "backward raised KeyError: 'no backward'" in report.notes[0]
    assert report.norms[0].gradient == "random"


def test_without_parameters_to_train_no_training_is_timed():
    model = Around(lambda self, x: self.norm(x)).requires_grad_(False)
    report = ours.inspect(model, rows(5, COLS).requires_grad_())
    assert report.norms[0].gradient == "the output"
    assert report.norms[0].errors.keys() == {"y", "dx"}
    assert report.training is None


def test_attributes_of_the_model_and_inputs_are_left_as_they_were():
    class Cache:
        rows = ()

        def add(self, y):
            self.rows = (*self.rows, y.detach())
            return torch.cat(self.rows)

    def count(self, x, same, cache):
        assert x is same
        assert not cache.rows
        self.calls += 1
        self.kept.append(self.norm(x))
        self.last = self.kept[-1]
        return torch.cat(self.kept) + cache.add(self.last)[0]

    model, cache, x = Around(count, calls=0, kept=[], last=None), Cache(), rows(5, COLS)
    report = ours.inspect(model, x, x, cache=cache)
    assert (model.calls, model.kept, model.last, cache.rows) == (0, [], None, ())
    assert "the model's backward was not timed" in report.notes[-1]  # through what it kept


def test_what_is_compiled_runs_as_it_was_before():
    def backend(graph, inputs):
        raise AssertionError("compiled")

    block = nn.Sequential(nn.LayerNorm(COLS))
    block.compile(backend=backend)
    inner = torch.compile(nn.Sequential(nn.LayerNorm(COLS)), backend=backend)
    for model in (block, nn.Sequential(inner)):
        (norm,) = ours.inspect(model, rows(5, COLS)).norms
        assert norm.calls == 1


def test_norms_inside_of_torchscript():
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.script(nn.Sequential(nn.LayerNorm(COLS)))
    with pytest.raises(TypeError, match="a RecursiveScriptModule, in which calls cannot be seen"):
        ours.inspect(scripted, rows(5, COLS))
    report = ours.inspect(nn.Sequential(nn.LayerNorm(COLS), scripted), rows(5, COLS))
    assert [each.name for each in report.norms] == ["0"]
    assert report.notes == ["norms inside of TorchScript's modules are not seen"]


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
