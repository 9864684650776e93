"""A gate on a GPU: y = norm(x) * act(gate), or norm(x * act(gate)), and dgate beside dx."""

from itertools import product
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from as_numpy_triton import DEVICE, Kernels
from calls import assert_same_bits, backward, forward
from cases import KINDS, Case, gated_cases, of_each_kind
from checkers import GATINGS, check_gate
from layouts import Array
from triton_interpreter import INTERPRETED, every
from values import TYPES, dtype_of

import layernorm.torch as ours
from layernorm import accuracy, reference
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import backward as gpu_backward
from layernorm.torch.gpu import forward as gpu_forward
from layernorm.torch.gpu import operators as gpu

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU here", allow_module_level=True)

kernels = Kernels()
each_kind = pytest.mark.parametrize("kind", KINDS)
each_side = pytest.mark.parametrize("norm_before_gate", [True, False])


def id_of(given: Case | dict[str, Any]) -> str:
    if isinstance(given, Case):
        return given.id
    return f"{given['activation']}_{'after' if given['norm_before_gate'] else 'before'}"


# 4097 columns take the interpreter long, and are in tiles as those of 100 in the next test.
CASES = [case for case in of_each_kind(gated_cases) if not INTERPRETED or case.cols < 4097]


@pytest.mark.parametrize(("case", "gating"), every(19, list(product(CASES, GATINGS))), ids=id_of)
def test_y_and_the_gradients_are_within_their_bounds(case: Case, gating: dict[str, Any]) -> None:
    check_gate(kernels, case, gating)


# 100: the sums of dweight and dbias have a kernel of their own. 300, and 40 in channels first: long
# rows.
SMALL = [
    Case("layer_norm", "float32", 100, rows=2),
    Case("layer_norm", "float32", 300, "scale_1e18", rows=2),
    Case("layer_norm", "bfloat16", 304, "mean_1e4", rows=3),
    Case("rms_norm", "float16", 301, "outlier", rows=2, parameters="weight zero_centered"),
    Case("rms_norm", "float64", 260, "subnormals", rows=1, parameters=""),
    Case("layer_norm", "float32", 40, layout="channels_first", along=(0,)),
    Case("layer_norm", "float64", 20, layout="channels_first", parameters="bias"),
]


@pytest.mark.parametrize("gating", [GATINGS[0], GATINGS[3]], ids=id_of)
@pytest.mark.parametrize("case", SMALL, ids=id_of)
def test_y_and_the_gradients_are_within_their_bounds_in_small_tiles(
    case, gating, small_tiles
) -> None:
    check_gate(kernels, case, gating)


def rows_of_one(gate: Array, activation: str) -> tuple[Array, Array]:
    """Return act(gate) and its derivative: a row of ones is its own RMS norm."""
    ones = np.ones_like(gate)
    y, stats = kernels.rms_norm_forward(ones, gate=gate, eps=0.0, activation=activation)
    return y, kernels.rms_norm_backward(ones, ones, stats, gate=gate, need_dx=False)[2]


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_activation_and_its_derivative_are_within_5_ulp_over_all_exponents(
    dtype: str, activation: str
) -> None:
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    exponents = rng.integers(info.minexp - info.nmant, info.maxexp, 8192)
    magnitudes = np.ldexp(rng.uniform(1, 2, exponents.size), exponents)
    # Where exp(-|z|) matters, more.
    common = rng.uniform(-20, 20, 20_000), rng.uniform(-750, 0, 4000), rng.uniform(-104, -87, 576)
    gate = np.concatenate([magnitudes, -magnitudes, *common]).astype(dtype).reshape(-1, 8192)
    results = rows_of_one(gate, activation)
    act, slope, terms = reference.activate(gate, activation, exact=dtype == "float64")
    scales = np.abs(act), terms
    for got, exact, scale in zip(results, (act, slope), scales, strict=True):
        off = np.abs(got.astype(exact.dtype) - exact) / accuracy.ulp(scale, dtype)
        assert off.max() <= 5, f"{off.max()} ulp at {gate.flat[off.argmax()]}"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_the_activation_at_the_edges(activation: str, dtype: str) -> None:
    gate = np.array([[np.inf, -np.inf, np.nan, 0.0, -0.0, 65504, -65504]]).astype(dtype_of(dtype))
    act, slope = (each[0].astype(np.float64) for each in rows_of_one(gate, activation))
    largest = gate[0, 5].astype(np.float64)
    expected = {
        "silu": ([np.inf, -0.0, np.nan, 0, -0.0, largest, -0.0], [1, 0, np.nan, 0.5, 0.5, 1, 0]),
        "sigmoid": ([1, 0, np.nan, 0.5, 0.5, 1, 0], [0, 0, np.nan, 0.25, 0.25, 0, 0]),
    }[activation]
    np.testing.assert_array_equal(act, expected[0])
    np.testing.assert_array_equal(slope, expected[1])
    signs = np.signbit(act) & ~np.isnan(act)
    assert signs.tolist() == [activation == "silu" and each in (1, 4, 6) for each in range(7)]


# 17: one program a row. 100: and another kernel for the sums. 300: in small tiles a long row.
@pytest.mark.parametrize("cols", [17, 100, 300])
def test_with_the_gate_first_the_rows_are_those_of_the_product(cols, small_tiles) -> None:
    case = Case(cols=cols, rows=3)
    x, dy, weight, bias = case.arrays()
    gate = np.full_like(x, 2.0**80)  # its own silu, whose derivative is 1; squares overflow
    u, options = x * gate, {"gate": gate, "norm_before_gate": False}
    y, stats = forward(kernels, case, x, weight, bias, **options)
    expected, of_u = forward(kernels, case, u, weight, bias)
    assert_same_bits(y, expected, "y")
    for name in ("mean", "rstd", "residual"):
        assert_same_bits(getattr(stats, name), getattr(of_u, name), name)
    dx, dweight, dbias, dgate = backward(kernels, case, dy, x, stats, weight, gate=gate)
    du, *of_parameters = backward(kernels, case, dy, u, of_u, weight)
    for got, right in zip((dweight, dbias), of_parameters, strict=True):
        assert_same_bits(got, right, "dweight or dbias")
    assert_same_bits(dx, du * gate, "dx")
    assert_same_bits(dgate, du * x, "dgate")


# 17: one program a row. 300: in small tiles a long row.
@pytest.mark.parametrize("cols", [17, 300])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@each_side
def test_nan_and_infinity_in_the_gate_stay_in_their_element_or_row(
    norm_before_gate, bad, cols, small_tiles
) -> None:
    case = Case(cols=cols, rows=3)
    x, _, weight, bias = case.arrays()
    gate, options = case.gate(), {"norm_before_gate": norm_before_gate}
    clean, _ = forward(kernels, case, x, weight, bias, gate=gate, **options)
    gate[1, 5] = bad
    y, _ = forward(kernels, case, x, weight, bias, gate=gate, **options)
    touched = (1, 5) if norm_before_gate else (1,)
    assert not np.isfinite(y[touched]).any()
    y[touched] = clean[touched]
    assert_same_bits(y, clean, "the others of y")


@pytest.mark.parametrize("cols", [17, 300])
@each_side
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(
    norm_before_gate, cols, small_tiles
) -> None:
    case = Case(cols=cols, rows=3)
    x, dy, weight, bias = case.arrays()
    gate = case.gate()

    def call(rows: slice) -> tuple[Array, Array, Array]:
        given = {"gate": gate[rows], "norm_before_gate": norm_before_gate}
        y, stats = forward(kernels, case, x[rows], weight, bias, **given)
        needs = {"gate": gate[rows], "need_dweight": False, "need_dbias": False}
        dx, *_, dgate = backward(kernels, case, dy[rows], x[rows], stats, weight, **needs)
        return y, dx, dgate

    for got, expected in zip(call(slice(1, 2)), call(slice(None)), strict=True):
        assert_same_bits(got, expected[1:2], "a row")


# 65: sums beside dx. 300: in small tiles a long row.
@pytest.mark.parametrize(("kind", "cols"), [("layer_norm", 300), ("rms_norm", 65)])
@each_side
def test_what_is_not_needed_is_none_and_changes_no_other_bit(
    norm_before_gate, kind, cols, small_tiles
) -> None:
    case = Case(kind, cols=cols, rows=3)
    x, dy, weight, bias = case.arrays()
    options = {"gate": case.gate(), "norm_before_gate": norm_before_gate}
    _, stats = forward(kernels, case, x, weight, bias, **options)
    names = ("dx", "dweight", "dbias", "dgate")

    def call(**needs: bool) -> dict[str, Array | None]:
        results = backward(kernels, case, dy, x, stats, weight, gate=options["gate"], **needs)
        return dict(zip(names, results, strict=True))

    whole = call()
    for wanted in names:
        if whole[wanted] is None:
            continue
        for name, result in call(**{f"need_{name}": name == wanted for name in names}).items():
            if name == wanted:
                assert_same_bits(result, whole[name], name)
            else:
                assert result is None


def a_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


# x, the gate, and the axis. 16: rows are read 16 bytes at a time, from aligned addresses.
LAYOUTS: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {
    "channels first, gate channels last": (
        a_tensor(2, 6, 3, 35),
        a_tensor(2, 6, 3, 35, seed=2).to(memory_format=torch.channels_last),
        1,
    ),
    "channels last, gate channels first": (
        a_tensor(2, 6, 3, 35).to(memory_format=torch.channels_last),
        a_tensor(2, 6, 3, 35, seed=2),
        1,
    ),
    "parts of a projection": (
        a_tensor(2, 7, 5, 16)[:, :, 1],
        a_tensor(2, 7, 5, 16)[:, :, 3],
        -1,
    ),
    "in small tiles": (a_tensor(2, 300), a_tensor(2, 2, 300)[:, 1], -1),  # long rows there
    "not aligned": (a_tensor(5, 16), a_tensor(81, seed=2)[1:].view(5, 16), -1),
    "expanded": (a_tensor(5, 16), a_tensor(1, 16, seed=2).expand(5, 16), -1),
}


@pytest.mark.parametrize("name", LAYOUTS)
@each_side
def test_a_gate_of_any_strides_gives_the_same_bits(norm_before_gate, name, request) -> None:
    if name == "in small tiles":
        request.getfixturevalue("small_tiles")
    x, gate, axis = LAYOUTS[name]
    definition = Definition((axis,), 1e-5, norm_before_gate=norm_before_gate)
    before = [each.clone() for each in (x, gate)]

    def results(gate: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, *statistics = gpu_forward.forward(x, None, None, definition, gate=gate)
        given = (y, x, None, x.dtype, definition, [True] * 4, statistics)
        return y, *statistics, *gpu_backward.Backward(*given, gate=gate).run()

    got = results(gate)
    for each, old in zip((x, gate), before, strict=True):
        assert torch.equal(each, old)
    assert got[-1].stride() == got[0].stride()
    like_x = torch.empty_like(x).copy_(gate)
    for each, right in zip(got, results(like_x), strict=True):
        assert torch.equal(each, right)


@each_kind
@pytest.mark.parametrize("silu", [True, False])
@each_side
def test_the_operators_have_the_bits_of_the_kernels(kind, silu, norm_before_gate) -> None:
    x, gate, dy = (a_tensor(2, 3, 16, seed=seed) for seed in range(3))
    parameters = [a_tensor(16, seed=seed) for seed in (5, 6)][: 2 if kind == "layer_norm" else 1]
    weight, bias = (*parameters, None)[:2]
    options = ([-1], 1e-5, True, silu, norm_before_gate)
    definition = Definition((-1,), 1e-5, kind == "layer_norm", True, silu, norm_before_gate)
    run, need = gpu.OPERATORS, [True] * (2 + len(parameters))
    results = gpu_forward.forward(x, weight, bias, definition, gate=gate)
    y, *statistics = [each for each in results if each is not None]
    for got, right in zip(
        run[f"gated_{kind}"](x, gate, *parameters, *options), (y, *statistics), strict=True
    ):
        assert torch.equal(got, right)
    given = (dy, x, weight, x.dtype, definition, need, results[1:])
    expected = gpu_backward.Backward(*given, gate=gate, bias=bias).run()
    expected = [each for each in expected if each is not None]
    given = (dy, x, gate, *statistics, *parameters, *options)
    for got, right in zip(run[f"gated_{kind}_backward"](*given, need), expected, strict=True):
        assert torch.equal(got, right)
    nothing = run[f"gated_{kind}_backward"](*given, [False] * len(need))
    assert [each.numel() for each in nothing] == [0] * len(need)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_no_elements(shape) -> None:
    x, options = a_tensor(*shape), (None, None, [-1], 1e-5, False, True, True)
    y, *statistics = gpu.OPERATORS["gated_layer_norm"](x, x, *options)
    assert y.shape == shape
    dx, *of_parameters, dgate = gpu.OPERATORS["gated_layer_norm_backward"](
        *(y, x, x, *statistics, *options, [True] * 4)
    )
    assert dx.shape == dgate.shape == shape
    assert not any(each.any() for each in of_parameters)


def test_other_shapes_types_and_devices_are_errors_that_say_what_to_do() -> None:
    x, run = a_tensor(2, 3), gpu.OPERATORS
    options = (None, [-1], 1e-5, False, True, True)
    bad: list[tuple[Any, str]] = [
        (x[:, :2], r"gate has shape \[2, 2\].* expected those of x, \[2, 3\]"),
        (x[0], r"gate has shape \[3\].* expected those of x, \[2, 3\]"),
        (x.half(), r"gate has .* type torch.float16.*pass gate\.to\(x\.dtype\)"),
        (x.to("meta"), "gate is on meta .*one device"),
    ]
    for gate, words in bad:
        with pytest.raises(RuntimeError, match=words):
            run["gated_rms_norm"](x, gate, *options)
        with pytest.raises(RuntimeError, match=words):
            run["gated_rms_norm_backward"](x, x, gate, x[:, :1], *options, [True] * 3)


@pytest.mark.parametrize("past_the_dispatcher", [False, True])
@pytest.mark.parametrize(("kind", "norm_before_gate"), list(zip(KINDS, [True, False], strict=True)))
def test_the_front_end_reaches_the_kernels(
    kind, norm_before_gate, past_the_dispatcher, in_place_of_the_cpu, monkeypatch
) -> None:
    monkeypatch.setattr(gpu, "BYPASSING_DEVICES", ("cpu",) if past_the_dispatcher else ())
    seen = []
    launch = gpu_forward.forward

    def watched(*arguments, **options):
        seen.append(options["gate"] is not None)
        return launch(*arguments, **options)

    monkeypatch.setattr(gpu_forward, "forward", watched)
    x, gate, dy = (a_tensor(2, 16, 5, seed=seed) for seed in range(3))
    parameters = [a_tensor(16, seed=seed) for seed in (5, 6)][: 2 if kind == "layer_norm" else 1]
    leaves = [each.requires_grad_() for each in (x, gate, *parameters)]
    options = {"gate": gate, "activation": "sigmoid", "norm_before_gate": norm_before_gate}
    y = getattr(ours, kind)(x, (16,), *parameters, axis=1, eps=1e-5, **options)
    with torch.no_grad():
        again = getattr(ours, kind)(x, (16,), *parameters, axis=1, eps=1e-5, **options)
    assert torch.equal(again, y)
    assert seen == [True, True]
    got = torch.autograd.grad(y, leaves, dy)
    definition = Definition((-2,), 1e-5, kind == "layer_norm", False, False, norm_before_gate)
    weight, bias = (*parameters, None)[:2]
    expected, *statistics = launch(x, weight, bias, definition, gate=gate)
    assert torch.equal(y, expected)
    need = [True] * (2 + len(parameters))
    given = (dy, x, weight, x.dtype, definition, need, statistics)
    dx, *of_parameters, dgate = gpu_backward.Backward(*given, gate=gate, bias=bias).run()
    for each, right in zip(got, (dx, dgate, *of_parameters), strict=False):
        assert torch.equal(each, right)
