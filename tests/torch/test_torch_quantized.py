"""Norms in 8 bits: bits, types, transforms, compilers, layouts, errors."""

import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from as_numpy_torch import AsNumpy, to_tensor  # noqa: E402
from calls import bits  # noqa: E402
from cases import Case, of_each_kind, quantized_cases  # noqa: E402
from checkers import QUANTIZATIONS, check_quantized  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import layernorm  # noqa: E402
import layernorm.numpy  # noqa: E402
import layernorm.torch as ours  # noqa: E402
from layernorm.torch import fallback, quantized  # noqa: E402

each_kind = pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
each_quantization = pytest.mark.parametrize(("dtype", "scale"), QUANTIZATIONS)
X = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.linspace(0.5, 2, 40)


def assert_same(got: Any, expected: Any) -> None:
    got, expected = ((each,) if isinstance(each, Tensor) else each for each in (got, expected))
    assert len(got) == len(expected)
    for mine, right in zip(got, expected, strict=True):
        assert mine.dtype == right.dtype
        assert mine.shape == right.shape
        a, b = (each.contiguous().view(torch.uint8) for each in (mine, right))
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", of_each_kind(quantized_cases), ids=lambda case: case.id)
def test_q_and_the_scales_are_those_of_y(case: Case) -> None:
    check_quantized(AsNumpy(), case)


@each_kind
@each_quantization
def test_the_top_level_gives_the_bits_of_numpy(kind: str, dtype: str, scale: float | None) -> None:
    case = Case(kind, "bfloat16", 257)
    x, _, weight, _ = case.arrays()
    given = {"dtype": dtype, "scale": scale}
    function = getattr(layernorm, f"quantized_{kind}")
    expected = getattr(layernorm.numpy, f"quantized_{kind}")(x, weight, **given)
    got = function(to_tensor(x), to_tensor(weight), **given)
    if scale is not None:
        got, expected = [got], [expected]
    for mine, right in zip(got, expected, strict=True):
        assert mine.is_contiguous()
        assert bits(mine.view(torch.uint8).numpy()) == bits(right.view(np.uint8))


@each_kind
@each_quantization
def test_pytorchs_own_operations_give_the_same_bits(
    kind: str, dtype: str, scale: float | None
) -> None:
    """Of y: what whoever does not know our operators sees, on every kind of values."""
    for x_type in ("float32", "bfloat16", "float16"):
        x, *_ = Case(kind, x_type, 64, values="mixed").arrays()
        x = to_tensor(x)
        x[0, 1], x[1] = math.nan, 0
        function, norm = (getattr(ours, name + kind) for name in ("quantized_", ""))
        expected = function(x, 64, dtype=dtype, scale=scale, eps=1e-5)
        q, scales = quantized.composed(norm(x, 64, eps=1e-5), (-1,), dtype, scale)
        expected = [expected] if scale is not None else expected
        for got, right in zip((q, scales), expected, strict=False):
            # Numbers: PyTorch has another NaN in float8_e5m2.
            assert got.dtype == right.dtype
            got, right = got.float(), right.float()
            assert torch.equal(got.nan_to_num(nan=7e4), right.nan_to_num(nan=7e4))
            assert torch.equal(got.signbit() & ~got.isnan(), right.signbit() & ~right.isnan())


def test_a_mode_that_knows_pytorch_only_sees_its_operations() -> None:
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    with Watch():
        q, scales = ours.quantized_layer_norm(X, 40, WEIGHT)
    assert not any("layernorm" in name for name in seen)
    assert (q.float() * scales - ours.layer_norm(X, 40, WEIGHT)).abs().max() < 0.02


@each_kind
def test_neither_result_has_a_gradient(kind: str) -> None:
    x, weight = X.clone().requires_grad_(), torch.nn.Parameter(WEIGHT)
    q, scales = getattr(ours, f"quantized_{kind}")(x, 40, weight)
    assert not q.requires_grad
    assert not scales.requires_grad
    derivative = torch.func.jacfwd(lambda x: ours.quantized_layer_norm(x, 40)[1])(X[0])
    assert not derivative.any()
    loss = torch.func.grad(lambda x: (x * ours.quantized_layer_norm(x, 40)[1]).sum())(X)
    torch.testing.assert_close(loss, ours.quantized_layer_norm(X, 40)[1].expand(6, 40))


@each_kind
@each_quantization
def test_vmap_gives_the_results_of_each(kind: str, dtype: str, scale: float | None) -> None:
    function = getattr(ours, f"quantized_{kind}")
    x, weights = X.reshape(2, 3, 40), torch.stack([WEIGHT, 3 * WEIGHT])

    def of(x: Tensor, weight: Tensor) -> Any:
        return function(x, 40, weight, dtype=dtype, scale=scale)

    for given, dims in (
        ((x, WEIGHT), (0, None)),
        ((x, weights), (0, 0)),
        ((X, weights), (None, 0)),
    ):
        got = torch.vmap(of, dims)(*given)
        each = [
            of(*(one if dim is None else one[at] for one, dim in zip(given, dims, strict=True)))
            for at in range(2)
        ]
        expected = torch.stack(each) if scale else [torch.stack(pair) for pair in zip(*each)]  # noqa: B905
        assert_same(got, expected)
    with pytest.raises(RuntimeError, match="scale has a batch axis"):
        torch.vmap(lambda s: function(X, 40, scale=s))(torch.ones(2))


@each_kind
def test_compiled_it_is_one_operator_with_the_same_bits(kind: str) -> None:
    function = getattr(ours, f"quantized_{kind}")
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    @torch.compile(backend=backend, fullgraph=True, dynamic=True)
    def call(x: Tensor, scale: Tensor) -> Any:
        return function(x, 40, WEIGHT), function(x, 40, dtype=torch.float8_e4m3fn, scale=scale)

    scale = torch.tensor(0.05)
    for x in (X, X[:3].bfloat16().float()):
        with torch.no_grad():
            dynamic, given = call(x, scale)
        assert_same(dynamic, function(x, 40, WEIGHT))
        assert_same(given, function(x, 40, dtype=torch.float8_e4m3fn, scale=0.05))
    calls = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum(f"quantized_{kind}" in name for name in calls) == 2


def test_inductor_compiles_it() -> None:
    @torch.compile
    def call(x: Tensor) -> Tensor:
        q, scales = ours.quantized_rms_norm(x, 40, WEIGHT, dtype=torch.float8_e5m2)
        return q.float() * scales

    q, scales = ours.quantized_rms_norm(X, 40, WEIGHT, dtype=torch.float8_e5m2)
    torch.testing.assert_close(call(X), q.float() * scales)


def test_fake_tensors_have_the_shapes_and_types_of_real_ones() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for shape, axis in (((2, 3, 4), (1,)), ((2, 5), (-1,)), ((3, 4, 2), (0, 2))):
        x = torch.randn(shape).bfloat16()
        sizes = [shape[each] for each in axis]
        for scale in (None, 0.1):
            real = ours.quantized_layer_norm(x, sizes, axis=axis, scale=scale)
            with FakeTensorMode() as mode:
                given = mode.from_tensor(x)
                fake = ours.quantized_layer_norm(given, sizes, axis=axis, scale=scale)
            real, fake = ([each] if scale else each for each in (real, fake))
            for mine, other in zip(real, fake, strict=True):
                assert (mine.shape, mine.dtype, mine.stride()) == (
                    *(other.shape, other.dtype),
                    other.stride(),
                )


def test_meta_tensors_and_empty_ones() -> None:
    q, scales = ours.quantized_layer_norm(X.to("meta"), 40)
    assert (q.device.type, q.dtype, scales.shape) == ("meta", torch.int8, (6, 1))
    for shape in ((0, 8), (3, 0), (2, 0, 3)):
        q, scales = ours.quantized_layer_norm(torch.zeros(shape), shape[-1:])
        assert q.shape == shape
        assert scales.shape == (*shape[:-1], 1)
        assert (scales == torch.finfo(torch.float32).smallest_normal).all()


def test_no_array_of_the_input_s_size_is_allocated_but_q() -> None:
    x = torch.randn(2000, 256)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        ours.quantized_layer_norm(x, 256)
    allocated = sum(max(0, each.self_cpu_memory_usage) for each in profiled.key_averages())
    assert allocated < 1.1 * x.numel()


def test_layouts_of_images() -> None:
    x = torch.randn(2, 24, 5, 7)
    for given in (x, x.to(memory_format=torch.channels_last)):
        q, scales = ours.quantized_layer_norm(given, 24, axis=1)
        y = ours.layer_norm(given, 24, axis=1)
        expected, expected_scales = quantized.composed(y, (1,), "int8", None)
        assert q.is_contiguous()
        assert_same((q, scales), (expected.contiguous(), expected_scales))


def test_the_type_and_the_scale_may_be_given_in_several_ways() -> None:
    expected = ours.quantized_layer_norm(X, 40, dtype=torch.float8_e4m3fn, scale=0.25)
    assert_same(ours.quantized_layer_norm(X, 40, dtype="float8_e4m3fn", scale=0.25), expected)
    for scale in (torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25)):
        given = {"dtype": torch.float8_e4m3fn, "scale": scale}
        assert_same(ours.quantized_layer_norm(X, 40, **given), expected)
    wide = torch.tensor(0.25, dtype=torch.float64)
    assert_same(layernorm.quantized_layer_norm(X, dtype="float8_e4m3fn", scale=wide), expected)


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another type": ({"dtype": torch.uint8}, TypeError, "uint8.*int8, float8_e4m3fn"),
    "another float8": ({"dtype": torch.float8_e4m3fnuz}, TypeError, "float8_e4m3fnuz.*int8"),
    "scale of zero": ({"scale": 0.0}, ValueError, "scale is 0.0.*positive"),
    "scales of rows": ({"scale": torch.ones(6, 1)}, ValueError, r"scale has shape \(6, 1\).*one"),
    "text": ({"scale": "1"}, TypeError, "scale is '1'.*number"),
    "weight": ({"weight": WEIGHT[1:]}, RuntimeError, r"weight of shape \[39\]"),
    "weight type": ({"weight": WEIGHT.double()}, RuntimeError, "mixed dtype"),
    "shape": ({"normalized_shape": 41}, RuntimeError, "expected input with shape"),
}


@pytest.mark.parametrize("name", ERRORS)
@each_kind
def test_a_bad_call_is_an_error(kind: str, name: str) -> None:
    change, error, words = ERRORS[name]
    if (kind, name) == ("rms_norm", "weight type"):
        pytest.skip("PyTorch's own RMS norm takes it")
    with pytest.raises(error, match=words):
        getattr(ours, f"quantized_{kind}")(**{"input": X, "normalized_shape": 40} | change)


def test_an_operator_called_directly_checks_its_arguments() -> None:
    operator = torch.ops.layernorm.quantized_layer_norm
    with pytest.raises(RuntimeError, match="no such 8-bit type"):
        operator(X, None, None, None, [-1], 1e-5, False, 3)
    with pytest.raises(RuntimeError, match="scale needs to be one number"):
        operator(X, None, None, torch.ones(2), [-1], 1e-5, False, 0)
    with pytest.raises(RuntimeError, match="scale needs to be one number"):
        operator(X, None, None, torch.ones(1).double(), [-1], 1e-5, False, 0)


def test_pytorchs_fallback_is_not_taken_for_ordinary_tensors(monkeypatch) -> None:
    monkeypatch.setattr(fallback, "call", None)
    ours.quantized_layer_norm(X, 40, WEIGHT)
