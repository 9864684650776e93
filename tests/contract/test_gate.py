"""A gate: y = norm(x) * act(gate), or norm(x * act(gate)), rounded once; dgate beside dx."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from calls import assert_same_bits, backward, forward, unchanged
from cases import KINDS, Case, gated_cases, of_each_kind
from checkers import GATINGS, check_every_gating
from layouts import Array, poisoned
from values import TYPES, dtype_of

import layernorm.numpy as ours
from layernorm import accuracy, reference

CASES = of_each_kind(gated_cases)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)
each_gating = pytest.mark.parametrize(
    "gating",
    GATINGS,
    ids=lambda g: f"{g['activation']}_{'after' if g['norm_before_gate'] else 'before'}",
)


@each_case
def test_y_and_the_gradients_are_within_their_bounds(case: Case) -> None:
    check_every_gating(ours, case)


@each_case
def test_the_call_without_statistics_gives_the_same_bits(case: Case) -> None:
    x, _, weight, bias = case.arrays()
    parameters = (weight, bias) if case.kind == "layer_norm" else (weight,)
    for gating in GATINGS:
        given = {"gate": case.gate(), **gating}
        y, _ = forward(ours, case, x, weight, bias, **given)
        got = getattr(ours, case.kind)(x, *parameters, **given, **case.definition)
        assert_same_bits(got, y, "y")


def rows_of_one(gate: Array, activation: str) -> tuple[Array, Array]:
    """Return act(gate) and its derivative: a row of ones is its own RMS norm."""
    ones = np.ones_like(gate)
    y, stats = ours.rms_norm_forward(ones, gate=gate, eps=0.0, activation=activation)
    return y, ours.rms_norm_backward(ones, ones, stats, gate=gate, need_dx=False)[2]


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_activation_and_its_derivative_are_accurate_over_all_exponents(
    dtype: str, activation: str
) -> None:
    rng = np.random.default_rng(0)
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    mantissas = rng.uniform(1, 2, (len(exponents), 64))
    # Where exp(-|z|) matters, many.
    common = rng.uniform(-20, 20, (200, 500)), rng.uniform(-750, 0, (200, 100))
    magnitudes = np.ldexp(mantissas, exponents[:, None])
    gate = np.concatenate([each.ravel() for each in (magnitudes, -magnitudes, *common)])
    gate = gate.astype(dtype)[None]
    results = rows_of_one(gate, activation)
    act, slope, terms = reference.activate(gate, activation, exact=dtype == "float64")
    scales = np.abs(act), terms
    for got, exact, scale in zip(results, (act, slope), scales, strict=True):
        off = np.abs(got.astype(exact.dtype) - exact) / accuracy.ulp(scale, dtype)
        assert off.max() <= 4.2, f"{off.max()} ulp at {gate[0, off.argmax()]}"


@each_type
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_the_activation_at_the_edges(activation: str, dtype: str) -> None:
    gate = np.array([[np.inf, -np.inf, np.nan, 0.0, -0.0, 65504, -65504]]).astype(dtype_of(dtype))
    act, slope = rows_of_one(gate, activation)
    largest = gate[0, 5].astype(np.float64)
    expected = {
        "silu": ([np.inf, -0.0, np.nan, 0, -0.0, largest, -0.0], [1, 0, np.nan, 0.5, 0.5, 1, 0]),
        "sigmoid": ([1, 0, np.nan, 0.5, 0.5, 1, 0], [0, 0, np.nan, 0.25, 0.25, 0, 0]),
    }[activation]
    np.testing.assert_array_equal(act[0].astype(np.float64), expected[0])
    np.testing.assert_array_equal(slope[0].astype(np.float64), expected[1])
    signs = np.signbit(act[0].astype(np.float64)) & ~np.isnan(act[0].astype(np.float64))
    assert signs.tolist() == [activation == "silu" and each in (1, 4, 6) for each in range(7)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_first_67", "axes_apart"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@each_type
@each_kind
def test_nan_and_infinity_in_the_gate_stay_in_their_element_or_row(
    kind: str, dtype: str, bad: float, layout: str
) -> None:
    case = Case(kind, dtype, 48, layout=layout)
    x, _, weight, bias = case.arrays()
    at = tuple(size // 2 for size in x.shape)
    axes = case.axis if isinstance(case.axis, tuple) else (case.axis,)
    row = tuple(
        slice(None) if axis - x.ndim in axes or axis in axes else place
        for axis, place in enumerate(at)
    )
    for gating in GATINGS:
        gate = case.gate()
        clean, _ = forward(ours, case, x, weight, bias, gate=gate, **gating)
        gate = gate.copy()
        gate[at] = bad
        y, _ = forward(ours, case, x, weight, bias, gate=gate, **gating)
        if gating["norm_before_gate"]:
            is_one = bad == np.inf and gating["activation"] == "sigmoid"
            assert is_one or not np.isfinite(y[at].astype(np.float64))
            y[at] = clean[at]
        elif np.isnan(bad) or gating["activation"] == "silu":
            assert np.isnan(y[row].astype(np.float64)).all()
            y[row] = clean[row]
        else:
            assert np.isfinite(y[row].astype(np.float64)).all()
            y[row] = clean[row]
        assert_same_bits(y, clean, "the others of y")


@each_type
@each_gating
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(
    dtype: str, gating: dict[str, Any]
) -> None:
    case = Case(dtype=dtype, cols=257)
    x, dy, weight, bias = case.arrays()
    gate = case.gate()

    def call(rows: slice) -> tuple[Array, Array, Array]:
        y, stats = forward(ours, case, x[rows], weight, bias, gate=gate[rows], **gating)
        dx, *_, dgate = backward(ours, case, dy[rows], x[rows], stats, weight, gate=gate[rows])
        return y, dx, dgate

    together = call(slice(None))
    for row in range(len(x)):
        one = slice(row, row + 1)
        for got, expected in zip(call(one), together, strict=True):
            assert_same_bits(got, expected[one], f"row {row}")


@pytest.mark.parametrize("shape", [(300, 1025), (2, 70_000), (3, 40, 700)])
@each_gating
def test_the_thread_count_changes_no_bit(
    shape: tuple[int, ...],
    gating: dict[str, Any],
    set_num_threads: Callable[[int], None],
) -> None:
    rng = np.random.default_rng(0)
    x, gate, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    axis = 1 if len(shape) == 3 else -1
    weight, bias = (rng.standard_normal(shape[axis]).astype(np.float32) for _ in range(2))

    def results(threads: int) -> list[Array | None]:
        set_num_threads(threads)
        y, stats = ours.layer_norm_forward(x, weight, bias, gate=gate, axis=axis, **gating)
        return [y, *ours.layer_norm_backward(dy, x, stats, weight, gate=gate)]

    for got, expected in zip(results(4), results(1), strict=True):
        assert got is not None
        assert expected is not None
        assert_same_bits(got, expected, "a result")


@pytest.mark.parametrize("overwritten", ["x", "gate"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_first_67", "axes_apart"])
@each_type
def test_out_may_be_x_or_the_gate(dtype: str, layout: str, overwritten: str) -> None:
    case = Case(dtype=dtype, cols=48, layout=layout)
    x, _, weight, bias = case.arrays()
    for gating in GATINGS:
        given = {"x": x.copy(), "gate": case.gate().copy()}
        expected, _ = forward(ours, case, x, weight, bias, gate=given["gate"], **gating)
        out = given[overwritten]
        y, _ = forward(ours, case, given["x"], weight, bias, gate=given["gate"], out=out, **gating)
        assert y is out
        assert_same_bits(y, expected, "y")


@each_type
@each_gating
def test_with_a_residual_total_is_added_first(dtype: str, gating: dict[str, Any]) -> None:
    case = Case(dtype=dtype, cols=129)
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    gate = case.gate()
    y, total, stats = forward(ours, case, x, weight, bias, residual=residual, gate=gate, **gating)
    assert_same_bits(total, reference.add(x, residual), "total")
    expected, of_total = forward(ours, case, total, weight, bias, gate=gate, **gating)
    assert_same_bits(y, expected, "y")
    got = backward(ours, case, dy, total, stats, weight, gate=gate, dtotal=dtotal)
    dx, *others = backward(ours, case, dy, total, of_total, weight, gate=gate)
    assert_same_bits(got[0], reference.add(dx, dtotal), "dx")
    for each, right in zip(got[1:], others, strict=True):
        assert_same_bits(each, right, "another gradient")


@each_kind
@each_gating
def test_what_is_not_needed_is_none_and_changes_no_other_bit(
    kind: str, gating: dict[str, Any]
) -> None:
    case = Case(kind, cols=65)
    x, dy, weight, bias = case.arrays()
    gate = case.gate()
    _, stats = forward(ours, case, x, weight, bias, gate=gate, **gating)
    every = dict(
        zip(
            ("dx", "dweight", "dbias", "dgate"),
            backward(ours, case, dy, x, stats, weight, gate=gate),
            strict=True,
        )
    )
    names = [name for name, result in every.items() if result is not None]
    for wanted in names:
        needs = {f"need_{name}": name == wanted for name in names}
        results = backward(ours, case, dy, x, stats, weight, gate=gate, **needs)
        for name, result in zip(every, results, strict=True):
            if name == wanted:
                assert_same_bits(result, every[name], name)
            else:
                assert result is None


@each_gating
def test_weight_and_bias_may_vary_along_different_axes(gating: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, gate, dy = (rng.standard_normal((3, 4, 65)).astype(np.float32) for _ in range(3))
    weight, bias = rng.standard_normal((2, 3, 4, 65)).astype(np.float32)
    for shapes in (((3, 1, 65), (65,)), ((65,), (4, 65)), ((3, 1, 65), (4, 65))):
        given = [
            each[tuple(slice(size) for size in (1,) * (3 - len(shape)) + shape)].reshape(shape)
            for each, shape in zip((weight, bias), shapes, strict=True)
        ]
        y, stats = ours.layer_norm_forward(x, *given, gate=gate, **gating)
        gradients = ours.layer_norm_backward(dy, x, stats, given[0], gate=gate)
        names = ("dx", "dweight", "dbias", "dgate")
        results = {"y": y, **dict(zip(names, gradients, strict=True))}
        assert results["dweight"].shape == shapes[0]
        assert results["dbias"].shape == shapes[1]
        errors = accuracy.gated_errors(results, x, gate, *given, dy, **gating)
        assert max(errors.values()) <= accuracy.GATED_BOUND, errors


@each_type
def test_parameters_gradients_that_overflow_or_underflow_are_summed_again(dtype: str) -> None:
    """Of the norm's inputs, which only the gate's passes know."""
    if dtype == "float16":
        pytest.skip("products of float16 stay within float32")
    largest = 1e307 if dtype == "float64" else 3e38
    rng = np.random.default_rng(0)
    for shape, axis in (((40, 33), -1), ((3, 33, 70), 1)):
        x = rng.standard_normal(shape).astype(dtype_of(dtype))
        gate = rng.uniform(-1, 1, shape).astype(dtype_of(dtype))  # dy * act(gate) is finite
        signs = np.where(rng.random(shape) < 0.5, -1, 1)
        for size in (largest, 1e-290 if dtype == "float64" else 1e-35):
            dy = (signs * size * (0.5 + 0.5 * rng.random(shape))).astype(dtype_of(dtype))
            weight = np.ones(33, dtype_of(dtype))
            for gating in GATINGS:
                _, stats = ours.layer_norm_forward(
                    x, weight, weight, gate=gate, axis=axis, **gating
                )
                _, dweight, dbias, dgate = ours.layer_norm_backward(
                    dy, x, stats, weight, gate=gate, need_dx=False
                )
                results = {"dweight": dweight, "dbias": dbias}
                if size < 1:  # du overflows, though its product with act(gate) might not
                    results["dgate"] = dgate
                errors = accuracy.gated_errors(
                    results, x, gate, weight, weight, dy, axis=axis, **gating
                )
                assert max(errors.values()) <= accuracy.GATED_BOUND, (errors, size, gating)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@each_kind
def test_rows_outside_the_ordinary_range(kind: str, dtype: str) -> None:
    for values in ("scale_1e18", "subnormals", "outlier"):
        check_every_gating(ours, Case(kind, dtype, 65, values=values))


X = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
MEMORY = np.zeros((33, 64), np.float32)
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "shape": ({"gate": X[:, 1:]}, ValueError, r"gate .*\(32, 63\).*\(32, 64\)"),
    "would broadcast": ({"gate": X[0]}, ValueError, r"gate .*\(64,\).*\(32, 64\)"),
    "type": ({"gate": X.astype(np.float64)}, TypeError, "gate .*float64.*float32"),
    "integers": ({"gate": X.astype(int)}, TypeError, "gate .*int64.*float32"),
    "activation": ({"gate": X, "activation": "relu"}, ValueError, "activation .*'relu'.*silu"),
    "no name": ({"gate": X, "activation": np.tanh}, ValueError, "activation .*tanh.*silu"),
    "out overlaps the gate": (
        {"gate": MEMORY[1:], "out": MEMORY[:-1]},
        ValueError,
        "out overlaps gate in part",
    ),
    "total is the gate": (
        {"gate": MEMORY[1:], "residual": X, "total": MEMORY[1:]},
        ValueError,
        "total overlaps gate",
    ),
    "total without a residual": ({"gate": X, "total": X.copy()}, ValueError, "total .*residual"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("function", ["", "_forward"])
@each_kind
def test_a_bad_gate_is_an_error_and_nothing_is_written(kind: str, function: str, name: str) -> None:
    change, error, words = ERRORS[name]
    arguments = {"x": X} | change
    arrays = {each: value for each, value in arguments.items() if isinstance(value, np.ndarray)}
    with unchanged(**arrays), pytest.raises(error, match=words):
        getattr(ours, kind + function)(**arguments)


@each_kind
def test_the_backward_needs_the_gate_of_the_forward(kind: str) -> None:
    backward_of = getattr(ours, f"{kind}_backward")
    _, plain = getattr(ours, f"{kind}_forward")(X)
    _, gated = getattr(ours, f"{kind}_forward")(X, gate=X)
    with pytest.raises(ValueError, match="without a gate"):
        backward_of(X, X, plain, gate=X)
    with pytest.raises(ValueError, match="with a gate"):
        backward_of(X, X, gated)
    for gate, error in ((X[:, 1:], ValueError), (X.astype(np.float64), TypeError)):
        with pytest.raises(error, match="gate"):
            backward_of(X, X, gated, gate=gate)


@each_kind
def test_zero_rows_and_empty_rows(kind: str) -> None:
    for shape in ((0, 5), (3, 0)):
        x = np.zeros(shape, np.float32)
        y, stats = getattr(ours, f"{kind}_forward")(x, gate=x)
        assert y.shape == shape
        dx, *_, dgate = getattr(ours, f"{kind}_backward")(x, x, stats, gate=x)
        assert dx.shape == dgate.shape == shape


@pytest.mark.parametrize("kind", [ours.LayerNorm, ours.RMSNorm])
@each_gating
def test_layers_take_a_gate_and_return_its_gradient(kind: Any, gating: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    x, residual, gate, dy, dtotal = (
        rng.standard_normal((6, 8)).astype(np.float32) for _ in range(5)
    )
    layer = kind(8)
    function = "layer_norm" if kind is ours.LayerNorm else "rms_norm"
    parameters = [each.data for each in layer.parameters()]
    y, stats = getattr(ours, f"{function}_forward")(x, *parameters, gate=gate, **gating)
    assert_same_bits(layer(x, gate=gate, **gating), y, "y")
    dx, dweight, *_, dgate = getattr(ours, f"{function}_backward")(
        dy, x, stats, parameters[0], gate=gate
    )
    for got, expected in zip(layer.gated_backward(dy), (dx, dgate), strict=True):
        assert_same_bits(got, expected, "a gradient")
    assert_same_bits(layer.weight.grad, dweight, "dweight")
    with pytest.raises(ValueError, match="call gated_backward"):
        layer.backward(dy)
    y, total = layer(x, residual, gate, **gating)
    assert_same_bits(total, x + residual, "total")
    with_dtotal, _ = layer.gated_backward(dy, dtotal)
    assert_same_bits(with_dtotal, layer.gated_backward(dy)[0] + dtotal, "dx")
    layer(x)
    with pytest.raises(ValueError, match="call backward"):
        layer.gated_backward(dy)


def test_every_element_of_out_is_written() -> None:
    for shape, axis in (((37, 65), -1), ((3, 65, 70), 1)):
        out = poisoned(shape, np.dtype(np.float32))
        x = np.ones(shape, np.float32)
        y = ours.layer_norm(x, gate=x, axis=axis, out=out)
        assert y is out
        assert np.isfinite(out).all()
