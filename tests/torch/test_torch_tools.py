"""Tools that know PyTorch's own norms do with ours what they did before.

Each tool runs once on PyTorch's module and function, once on ours: what it returns, or the type of
its error, is the same.
"""

import copy
import inspect
import io
import pickle
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import (  # noqa: E402
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import layernorm.torch as ours  # noqa: E402

KINDS = {
    "layer_norm": ((nn.LayerNorm, F.layer_norm), (ours.LayerNorm, ours.layer_norm)),
    "rms_norm": ((nn.RMSNorm, F.rms_norm), (ours.RMSNorm, ours.rms_norm)),
}
X = torch.linspace(-2, 3, 32).reshape(4, 8).cos()

each_kind = pytest.mark.parametrize("kind", KINDS)


def targets(graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def exported(norm, **options):
    return torch.export.export(nn.Sequential(norm(8)), (X,), **options)


class Seen(torch.Tensor):
    """A subclass that notes the functions it is given to."""

    names: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.names.append(f"{function.__module__}.{function.__name__}")
        return super().__torch_function__(function, types, args, kwargs or {})


class FunctionMode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Wrapper(torch.Tensor):
    """A subclass with `__torch_dispatch__`, which notes the operators that it is given to."""

    names: list[str] = []  # noqa: RUF012

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.names.append(str(function))

        def inner_of(each):
            return each.inner if isinstance(each, cls) else each

        return function(*map(inner_of, args), **(kwargs or {}))


def subclass_sees(norm, function):
    Seen.names.clear()
    y = function(X.as_subclass(Seen), (8,))
    return [*Seen.names, type(y)]


def wrapper_sees(norm, function):
    Wrapper.names.clear()
    with torch.no_grad():
        function(Wrapper(X), (8,))
    return list(Wrapper.names)


def function_mode_sees(norm, function):
    with FunctionMode() as mode:
        norm(8)(X)
        function(X, [8])
    return mode.seen


def dispatch_mode_sees(norm, function):
    with DispatchMode() as mode:
        norm(8)(X)
    return mode.seen


def flops(norm, function):
    with FlopCounterMode(display=False) as mode:
        nn.Sequential(nn.Linear(8, 8), norm(8))(X).sum().backward()
    return mode.get_total_flops()


def per_sample_gradients(norm, function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), norm(8))
    call_for_per_sample_grads(model)(X).sin().sum().backward()
    return [each.grad_sample for each in model.parameters()]


def nested(layout):
    rows = [X[:1].clone(), X[1:].clone()]
    return torch.nested.nested_tensor(rows, layout=layout, requires_grad=True)


def nested_in(layout):
    def tool(norm, function):
        x, layer = nested(layout), norm(8)
        y = layer(x)
        sum((each.sin().sum() for each in y.unbind()), start=torch.zeros(())).backward()
        return [*y.unbind(), *(each.grad for each in layer.parameters())]

    return tool


def masked(norm, function):
    return norm(8)(torch.masked.masked_tensor(X, X > 0))


def trace(norm, function):
    traced = torch.jit.trace(nn.Sequential(norm(8)), X)
    again = torch.jit.trace(lambda x: function(x, x.shape[-1:]), X)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    return [kinds, traced(2 * X), again(X[:, :5])]


def script(norm, function):
    model = nn.Sequential(norm(8))
    scripted = torch.jit.script(model)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return [torch.jit.load(file)(X), model(X)]


def symbolic_trace(norm, function):
    traced = torch.fx.symbolic_trace(lambda x: function(x, (8,)))
    return [*targets(traced.graph), traced(X)]


def symbolic_trace_of_a_module(norm, function):
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), norm(8))) and None


def make_fx_in(mode):
    def tool(norm, function):
        graphs = [
            make_fx(each, tracing_mode=mode)(X)
            for each in (
                lambda x: function(x, (8,)),
                torch.func.grad(lambda x: function(x, (8,)).sin().sum()),
            )
        ]
        return [*(targets(each.graph) for each in graphs), *(each(2 * X) for each in graphs)]

    return tool


def functionalize(norm, function):
    def call(x):
        return function(x, (8,)).add_(1)

    return [
        torch.func.functionalize(call)(X),
        torch.func.vmap(torch.func.functionalize(call))(X),
        torch.func.functionalize(torch.func.grad(lambda x: call(x).sin().sum()))(X),
        make_fx(torch.func.functionalize(call))(X)(2 * X),
    ]


def export_in(**options):
    def tool(norm, function):
        program = exported(norm, **options)
        return [targets(program.graph), program.module()(2 * X)]

    return tool


def export_and_decompose(norm, function):
    program = exported(norm).run_decompositions()
    return [targets(program.graph), program.module()(2 * X)]


def onnx_by(dynamo):
    def tool(norm, function):
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
        file = io.BytesIO()
        model = nn.Sequential(norm(8))
        torch.onnx.export(model, (X,), file, dynamo=dynamo, verbose=False)
        made = onnx.load_from_string(file.getvalue())
        return sorted(node.op_type for node in made.graph.node)

    return tool


def quantize_fx(norm, function):
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), norm(8), nn.Linear(8, 8)).eval()
    prepared = prepare_fx(model, get_default_qconfig_mapping(), (X,))
    prepared(X)
    return convert_fx(prepared)(X)


def quantize_dynamic(norm, function):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), norm(8))
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(X)


def copies(norm, function):
    layer = norm(8)
    whole = io.BytesIO()
    torch.save(layer, whole)
    whole.seek(0)
    every = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer))
    return [each(X) for each in (*every, torch.load(whole, weights_only=False))]


def averaged(norm, function):
    model = nn.Sequential(norm(8))
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    return average(X)


def stacked_modules(norm, function):
    layers = [norm(8) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")

    def call(parameters, buffers):
        return torch.func.functional_call(base, (parameters, buffers), (X,))

    return torch.func.vmap(call)(parameters, buffers)


def default_device(norm, function):
    with torch.device("cpu"):
        return norm(8)(X)


def anomaly(norm, function):
    x = X.clone().requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        function(x, (8,)).sin().sum().backward()
    return x.grad


TOOLS = {
    "a subclass with __torch_function__": subclass_sees,
    "a subclass with __torch_dispatch__": wrapper_sees,
    "a function mode": function_mode_sees,
    "a dispatch mode": dispatch_mode_sees,
    "FlopCounterMode": flops,
    "Expanded Weights": per_sample_gradients,
    "nested, strided": nested_in(torch.strided),
    "nested, jagged": nested_in(torch.jagged),
    "masked": masked,
    "jit.trace": trace,
    "jit.script": script,
    "fx.symbolic_trace": symbolic_trace,
    "fx.symbolic_trace of a module": symbolic_trace_of_a_module,
    "make_fx": make_fx_in("real"),
    "make_fx, fake": make_fx_in("fake"),
    "make_fx, symbolic": make_fx_in("symbolic"),
    "functionalize": functionalize,
    "export": export_in(),
    "export, strict": export_in(strict=True),
    "export, any number of rows": export_in(dynamic_shapes=({0: torch.export.Dim("rows")},)),
    "export, decomposed": export_and_decompose,
    "ONNX": onnx_by(dynamo=True),
    "ONNX, the older exporter": onnx_by(dynamo=False),
    "quantize_fx": quantize_fx,
    "quantize_dynamic": quantize_dynamic,
    "copies": copies,
    "AveragedModel": averaged,
    "stack_module_state": stacked_modules,
    "a default device": default_device,
    "anomaly": anomaly,
    "a sparse x": lambda norm, function: function(X.to_sparse(), (8,)),
    "a quantized x": lambda norm, function: function(
        torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), (8,)
    ),
    "a complex x": lambda norm, function: function(X.to(torch.complex64), (8,)),
    "an integer x": lambda norm, function: function(X.long(), (8,)),
    "a list": lambda norm, function: function(X.tolist(), (8,)),
    "a list, by axis": lambda norm, function: function(
        X.tolist(), (8,), **({} if function.__module__.startswith("torch") else {"axis": -1})
    ),
    "a size that is a tensor": lambda norm, function: function(X, (torch.tensor(8),)),
    "a size that is a float": lambda norm, function: function(X, (8.0,)),
    "an eps that is a tensor": lambda norm, function: function(X, (8,), eps=torch.tensor(1e-3)),
}


def outcome(tool, which):
    torch.manual_seed(0)
    try:
        return tool(*which)
    except Exception as error:  # to compare any error
        return type(error)


@each_kind
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.filterwarnings("ignore")  # of old tools, about themselves
def test_a_tool_does_what_it_did(tool, kind) -> None:
    theirs, mine = (outcome(TOOLS[tool], each) for each in KINDS[kind])
    assert_same(mine, theirs)


def assert_same(mine, theirs) -> None:
    if isinstance(theirs, list):
        assert len(mine) == len(theirs)
        for each in zip(mine, theirs, strict=True):
            assert_same(*each)
    elif isinstance(theirs, torch.Tensor):
        assert type(mine) is type(theirs)
        torch.testing.assert_close(mine, theirs)
    else:
        assert mine == theirs


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # once in a process
def test_what_tools_see_are_pytorchs_own_functions() -> None:
    """The comparison above is of something: the tools that once failed do work."""
    assert subclass_sees(*KINDS["rms_norm"][1])[0] == "torch.nn.functional.rms_norm"
    assert F.layer_norm in function_mode_sees(*KINDS["layer_norm"][1])
    assert torch.ops.aten.native_layer_norm.default in dispatch_mode_sees(*KINDS["layer_norm"][1])
    assert wrapper_sees(*KINDS["layer_norm"][1]) == ["aten.native_layer_norm.default"]
    assert len(per_sample_gradients(*KINDS["layer_norm"][1])) == 4
    assert targets(exported(ours.LayerNorm).graph) == ["aten.layer_norm.default"]
    for layout, kinds in ((torch.strided, ["layer_norm"]), (torch.jagged, KINDS)):
        for kind in kinds:
            assert len(nested_in(layout)(*KINDS[kind][1])) > 2


@each_kind
def test_default_devices_and_plain_subclasses_get_our_kernel(kind) -> None:
    function = KINDS[kind][1][1]
    row = torch.tensor([1e30, -1e30])  # whose sum of squares overflows float32
    with torch.device("cpu"):
        assert function(row, (2,)).tolist() == [1, -1]
    y = function(row.as_subclass(Plain), (2,))
    assert type(y) is Plain
    assert y.tolist() == [1, -1]


@each_kind
def test_selective_checkpoints_run_our_kernel(kind) -> None:
    function = KINDS[kind][1][1]
    row = torch.tensor([1e30, -1e30], requires_grad=True)

    def contexts():
        return create_selective_checkpoint_contexts([torch.ops.aten.mul.Tensor])

    y = checkpoint(lambda x: function(x, (2,)) * 2, row, use_reentrant=False, context_fn=contexts)
    y.sum().backward()
    assert y.tolist() == [2, -2]
    assert row.grad is not None


@each_kind
def test_what_a_collective_will_return_gets_our_kernel(kind) -> None:
    collectives = pytest.importorskip("torch.distributed._functional_collectives")
    row = collectives.AsyncCollectiveTensor(torch.tensor([1e30, -1e30]))
    with torch.no_grad():
        assert KINDS[kind][1][1](row, (2,)).tolist() == [1, -1]


class Plain(torch.Tensor):
    """A subclass without functions of its own."""


TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("weight_type", TYPES, ids=str)
@pytest.mark.parametrize("x_type", TYPES, ids=str)
def test_rms_norm_takes_every_pair_of_types(x_type, weight_type, autocast) -> None:
    x, weight = X.to(x_type).requires_grad_(), nn.Parameter(torch.linspace(1, 2, 8).to(weight_type))
    results = []
    for norm in (nn.RMSNorm, ours.RMSNorm):
        layer = norm(8)
        layer.weight = weight
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
        results.append([y, *torch.autograd.grad(y.double().sin().sum(), [x, weight])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)  # types too
    for axis in (-1, 0):
        y = ours.rms_norm(x.t() if axis == 0 else x, (8,), weight, axis=axis)
        torch.testing.assert_close(y.t() if axis == 0 else y, results[0][0])


@pytest.mark.parametrize(
    "size", [np.int64(2), np.uint8(2), (np.int32(2),), torch.Size([2])], ids=repr
)
def test_sizes_may_be_numpys(size) -> None:
    row = torch.tensor([[1e30, -1e30]])  # whose sum of squares overflows float32
    layer = ours.LayerNorm(size)
    assert layer.normalized_shape == (2,)
    assert all(type(each) is int for each in layer.normalized_shape)
    for y in (layer(row), ours.layer_norm(row, size), ours.layer_norm(row, size, axis=-1)):
        assert y.tolist() == [[1, -1]]
    y = ours.RMSNorm(size)(row)
    assert y.tolist() == [[1, -1]]


def scripted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y = ours.layer_norm(x, [8], weight, None, 1e-3)
    return y + ours.rms_norm(x, [8], weight=weight, eps=1e-3)


def test_a_script_may_call_our_functions() -> None:
    weight = torch.linspace(1, 2, 8)
    torch.testing.assert_close(torch.jit.script(scripted)(X, weight), scripted(X, weight))


def test_a_script_of_other_axes_is_an_error_that_says_what_to_do() -> None:
    for layer in (ours.LayerNorm(8, axis=1), ours.RMSNorm(8, zero_centered_weight=True)):
        with pytest.raises(RuntimeError, match=r"use torch\.jit\.trace"):
            torch.jit.script(nn.Sequential(layer))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_channels_first_goes_into_an_onnx_file_that_runs(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(ours.LayerNorm(3, axis=1)).eval()
    x = torch.randn(2, 3, 4, 5)
    for dynamo in (False, True):
        path = tmp_path / "model.onnx"
        torch.onnx.export(model, (x,), path, dynamo=dynamo, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), model(x).detach())


RELOADED = """
import importlib, sys, torch, layernorm.torch
def results(module):
    x = torch.linspace(-1, 2, 12).reshape(3, 4).requires_grad_()
    y = module.LayerNorm(4)(x) + module.rms_norm(x.t(), (4,), axis=0).t()
    batched = torch.func.vmap(lambda row: module.layer_norm(row, (4,)))(x.detach())
    return [y.detach(), torch.autograd.grad(y.sin().sum(), x)[0], batched]
expected = results(layernorm.torch)
for name in sorted(each for each in sys.modules if each.startswith("layernorm.torch")):
    importlib.reload(sys.modules[name])
assert all(map(torch.equal, results(layernorm.torch), expected))
for name in [each for each in sys.modules if each.split(".")[0] == "layernorm"]:
    del sys.modules[name]
import layernorm.torch as again
assert all(map(torch.equal, results(again), expected))
with again.accelerate():
    assert torch.nn.functional.layer_norm(torch.tensor([1e30, -1e30]), (2,))[0] == 1
"""


# PyTorch 2.10 lets nobody register functions for an operator a second time.
allow_override = inspect.signature(torch.library.Library.impl).parameters.get("allow_override")
may_register_again = allow_override is not None and bool(allow_override.default)


@pytest.mark.skipif(not may_register_again, reason="PyTorch registers once")
def test_modules_may_be_reloaded_and_imported_again() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", RELOADED], check=True)
