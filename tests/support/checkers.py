"""The contract as functions: each raises AssertionError for a wrong implementation.

The contract's tests call them with our implementation, and test_planted_faults.py with wrong ones,
so each is known to fail where it should. An implementation is anything with the functions of
`layernorm.numpy`.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from calls import (
    Gradients,
    assert_equal_values,
    assert_same_bits,
    assert_same_numbers,
    backward,
    forward,
    forward_and_backward,
    unchanged,
)
from cases import Case
from layouts import Array, at_offset, axes_of, poisoned, read_only, rows_of, sliced, unaligned
from values import dtype_of, statistics_type

from layernorm import accuracy, reference

ROWWISE = ("y", "mean", "rstd", "residual", "dx")  # what depends on one row alone


def check_forward(impl: Any, case: Case) -> None:
    """y is within the bound, of x's shape and type; the inputs are unchanged."""
    x, _, weight, bias = case.arrays()
    with unchanged(x=x, weight=weight, bias=bias):
        y, _ = forward(impl, case, x, weight, bias)
    assert y.shape == x.shape, f"y has shape {y.shape}, x {x.shape}"
    assert y.dtype == dtype_of(case.dtype), f"y has type {y.dtype}, x {x.dtype}"
    judge_y(case, y, x, weight, bias)


def check_backward(impl: Any, case: Case) -> None:
    """dx, dweight and dbias are within their bounds, of the right shapes and types."""
    x, dy, weight, bias = case.arrays()
    _, stats = forward(impl, case, x, weight, bias)
    with unchanged(x=x, dy=dy, weight=weight, rstd=stats.rstd, mean=stats.mean):
        dx, dweight, dbias = backward(impl, case, dy, x, stats, weight)
    parameter_dtype = dtype_of(case.parameter_dtype or case.dtype)
    expected = {
        "dx": (dx, x.shape, dtype_of(case.dtype)),
        "dweight": (dweight, case.parameter_shape, parameter_dtype),
    }
    if case.kind == "layer_norm":
        expected["dbias"] = (dbias, case.parameter_shape, parameter_dtype)
    for name, (gradient, shape, dtype) in expected.items():
        assert gradient.shape == shape, f"{name} has shape {gradient.shape}, expected {shape}"
        assert gradient.dtype == dtype, f"{name} has type {gradient.dtype}, expected {dtype}"
    judge_gradients(case, (dx, dweight, dbias), dy, x, weight)


def judge_y(case: Case, y: Array, x: Array, weight: Array | None, bias: Array | None) -> None:
    error = accuracy.y_error(y, x, weight, bias, kind=case.kind, **case.definition)
    bound = accuracy.BOUNDS[case.dtype].y
    assert error <= bound, f"y is {error:.3g} ulp off, allowed {bound}: {case}"


def judge_gradients(
    case: Case, gradients: Gradients, dy: Array, x: Array, weight: Array | None
) -> None:
    """Judge the gradients that are not None."""
    dx, dweight, dbias = gradients
    axis, eps, kind, bounds = case.axis, case.eps, case.kind, accuracy.BOUNDS[case.dtype]
    errors = {}
    if dx is not None:
        error = accuracy.dx_error(dx, dy, x, weight, kind=kind, **case.definition)
        errors["dx"] = (error, bounds.dx)
    if dweight is not None:
        error = accuracy.dweight_error(dweight, dy, x, axis=axis, eps=eps, kind=kind)
        errors["dweight"] = (error, bounds.parameter)
    if dbias is not None:
        errors["dbias"] = (accuracy.dbias_error(dbias, dy, axis=axis), bounds.parameter)
    for name, (error, bound) in errors.items():
        assert error <= bound, f"{name} is {error:.3g} ulp off, allowed {bound}: {case}"


def check_residual(impl: Any, case: Case) -> None:
    """total = x + residual, rounded once; y and the statistics are those of the stored total."""
    x, _, weight, bias = case.arrays()
    residual, _ = case.residual()
    with unchanged(x=x, residual=residual, weight=weight, bias=bias):
        y, total, stats = forward(impl, case, x, weight, bias, residual=residual)
    assert_same_numbers(total, reference.add(x, residual), "total")
    judge_y(case, y, total, weight, bias)
    expected_y, expected = forward(impl, case, total, weight, bias)
    assert_same_bits(y, expected_y, "y of total")
    for name in ("mean", "rstd", "residual"):
        if getattr(expected, name) is not None:
            assert_same_bits(getattr(stats, name), getattr(expected, name), f"{name} of total")


def check_dtotal(impl: Any, case: Case) -> None:
    """dtotal is added to dx, within its bound; dweight and dbias are those without it."""
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    _, total, stats = forward(impl, case, x, weight, bias, residual=residual)
    with unchanged(total=total, dy=dy, dtotal=dtotal):
        dx, *of_parameters = backward(impl, case, dy, total, stats, weight, dtotal=dtotal)
    error = accuracy.dx_error(
        dx, dy, total, weight, dtotal=dtotal, kind=case.kind, **case.definition
    )
    bound = accuracy.BOUNDS[case.dtype].dx
    assert error <= bound, f"dx is {error:.3g} ulp off, allowed {bound}: {case}"
    _, *expected = backward(impl, case, dy, total, stats, weight)
    for got, right in zip(of_parameters, expected, strict=True):
        if right is not None:
            assert_same_bits(got, right, "dweight or dbias")


# How a gate is applied.
GATINGS = [
    {"activation": activation, "norm_before_gate": norm_before_gate}
    for activation in ("silu", "sigmoid")
    for norm_before_gate in (True, False)
]


def check_gate(impl: Any, case: Case, gating: dict[str, Any]) -> None:
    """y and all gradients of the gated norm are within their bounds; the inputs are unchanged."""
    x, dy, weight, bias = case.arrays()
    gate = case.gate()
    with unchanged(x=x, gate=gate, weight=weight, bias=bias, dy=dy):
        y, stats = forward(impl, case, x, weight, bias, gate=gate, **gating)
        dx, dweight, *dbias, dgate = backward(impl, case, dy, x, stats, weight, gate=gate)
    results = {"y": y, "dx": dx, "dgate": dgate, "dweight": dweight, "dbias": dbias[0]}
    for name in ("y", "dx", "dgate"):
        assert results[name].shape == x.shape, f"{name} has shape {results[name].shape}"
        assert results[name].dtype == dtype_of(case.dtype), f"{name} has another type"
    errors = accuracy.gated_errors(
        results, x, gate, weight, bias, dy, kind=case.kind, **case.definition, **gating
    )
    for name, error in errors.items():
        is_16_bit_y = name == "y" and case.dtype in ("float16", "bfloat16")
        bound = accuracy.BOUNDS[case.dtype].y if is_16_bit_y else accuracy.GATED_BOUND
        assert error <= bound, f"{name} is {error:.3g} ulp off, allowed {bound}: {case} {gating}"


def check_every_gating(impl: Any, case: Case) -> None:
    """The gated norm of the case is right for each activation, before and after the norm."""
    for gating in GATINGS:
        check_gate(impl, case, gating)


# The type and the scale.
QUANTIZATIONS: list[tuple[str, float | None]] = [
    ("int8", None),
    ("float8_e4m3fn", None),
    ("float8_e5m2", None),
    ("int8", 0.02),
    ("float8_e5m2", 1e-5),
]


def check_quantized(impl: Any, case: Case) -> None:
    """q and the scales are, to the last bit, what the reference makes of y.

    `impl` has `layer_norm_forward` and `quantized_layer_norm`, and the same for RMS norm.
    """
    x, _, weight, bias = case.arrays()
    parameters = (weight, bias) if case.kind == "layer_norm" else (weight,)
    y, _ = forward(impl, case, x, weight, bias)
    function = getattr(impl, f"quantized_{case.kind}")
    for dtype, scale in QUANTIZATIONS:
        with unchanged(x=x, weight=weight, bias=bias):
            given = {"dtype": dtype, "scale": scale, **case.definition}
            result = function(x, *parameters, **given)
        q, scales = result if scale is None else (result, None)
        what = f"{dtype}, scale {scale}: {case}"
        assert q.shape == x.shape
        assert q.dtype.name == dtype
        expected, expected_scales = reference.quantize(rows_of(y, case.axis), dtype, scale)
        got = rows_of(q, case.axis).astype(np.float64)
        np.testing.assert_array_equal(got, expected, err_msg=f"q, {what}")
        if dtype != "int8":  # which has no -0
            differ = (np.signbit(got) != np.signbit(expected)) & ~np.isnan(expected)
            assert not differ.any(), f"the sign of a zero, {what}"
        if scales is not None:
            assert scales.shape == case.statistics_shape
            assert scales.dtype == statistics_type(case.dtype)
            got = scales.reshape(-1, 1).astype(np.float64)
            np.testing.assert_array_equal(got, expected_scales, err_msg=f"scales, {what}")


def check_statistics(impl: Any, case: Case) -> None:
    """Stats have a mean and an rstd for each row, in the statistics' type, as exact as dx."""
    x, _, weight, bias = case.arrays()
    _, stats = forward(impl, case, x, weight, bias)
    judge_statistics(case, stats.mean, stats.rstd, stats.residual, x)
    assert stats.axis == axes_of(case.axis, x.ndim)
    assert stats.eps == case.eps


def judge_statistics(
    case: Case, mean: Array | None, rstd: Array, residual: Array | None, x: Array
) -> None:
    """Judge the statistics of the rows whose rstd is a normal number."""
    dtype, centered, exact = statistics_type(case.dtype), case.kind == "layer_norm", np.longdouble
    right_mean, _, right_rstd = reference.statistics(
        x, case.axis, case.eps, centered=centered, exact=True
    )
    limits = np.finfo(dtype)
    judged = (right_rstd >= limits.smallest_normal) & (right_rstd <= limits.max)
    allowed = accuracy.BOUNDS[case.dtype].dx * limits.eps
    saved = {"rstd": rstd}
    if centered:
        saved |= {"mean": mean, "residual": residual}
    else:
        assert mean is None
        assert residual is None
    for name, array in saved.items():
        assert array.shape == case.statistics_shape, f"{name} has shape {array.shape}"
        assert array.dtype == dtype, f"{name} has type {array.dtype}"
    off = (np.abs(rstd.astype(exact) - right_rstd) / right_rstd)[judged]
    assert (off <= allowed).all(), f"rstd is off by {off.max():.3g} of itself: {case}"
    if centered:
        found = mean.astype(exact) + residual.astype(exact)
        off = (np.abs(found - right_mean) * right_rstd)[judged]
        assert (off <= allowed).all(), f"mean is off by {off.max():.3g} deviations: {case}"


def check_every_element_is_written(impl: Any, case: Case) -> None:
    """No NaN is left in a poisoned `out`, and `out` itself is returned."""
    x, _, weight, bias = case.arrays()
    out = poisoned(x.shape, dtype_of(case.dtype))
    y, _ = forward(impl, case, x, weight, bias, out=out)
    assert y is out
    assert not np.isnan(out.astype(np.float64)).any(), "elements of out were left unwritten"
    fresh, _ = forward(impl, case, x, weight, bias)
    assert_same_bits(out, fresh, "out")


def check_in_place(impl: Any, case: Case) -> None:
    """out=x gives the bits of a fresh output."""
    x, _, weight, bias = case.arrays()
    expected, _ = forward(impl, case, x, weight, bias)
    y, _ = forward(impl, case, x, weight, bias, out=x)
    assert y is x
    assert_same_bits(x.astype(expected.dtype), expected, "y in place")


def check_batch_of_one(impl: Any, case: Case) -> None:
    """A sample alone gets the bits that it gets in the batch: y, mean, rstd and dx."""
    x, dy, weight, bias = case.arrays()
    assert 0 not in axes_of(case.axis, x.ndim), "the first axis must be the batch"
    batch = forward_and_backward(impl, case, x, dy, weight, bias)
    middle = len(x) // 2
    for part in ([0], [1], [middle], [len(x) - 1], range(1, 1 + middle)):
        alone = forward_and_backward(impl, case, x[part], dy[part], weight, bias)
        for name in ROWWISE:
            if name in batch:
                what = f"{name} of rows {list(part)[:1]} to {list(part)[-1:]} alone"
                assert_same_bits(alone[name], batch[name][part], what)


def check_place_of_a_row(impl: Any, case: Case) -> None:
    """Samples in another order get the same bits."""
    x, dy, weight, bias = case.arrays()
    order = np.random.default_rng(1).permutation(len(x))
    batch = forward_and_backward(impl, case, x, dy, weight, bias)
    moved = forward_and_backward(impl, case, x[order], dy[order], weight, bias)
    for name in ROWWISE:
        if name in batch:
            assert_same_bits(moved[name], batch[name][order], f"{name} of rows in another order")


def check_alignment(impl: Any, case: Case) -> None:
    """Where the arrays start in memory changes no bit."""
    arrays = case.arrays()
    expected = forward_and_backward(impl, case, *arrays)
    placings: dict[str, Callable[[Array], Array]] = {
        f"{elements} elements past a line": lambda a, e=elements: at_offset(a, e)
        for elements in (0, 1, 2, 3, 5, 8, 13)
    }
    placings |= {"one byte past an element": unaligned, "inside a larger array": sliced}
    for place, lay in placings.items():
        placed = (None if a is None else lay(a) for a in arrays)
        got = forward_and_backward(impl, case, *placed)
        for name, result in got.items():
            assert_same_bits(result, expected[name], f"{name}, inputs {place}")
        x, _, weight, bias = arrays
        out = lay(poisoned(x.shape, x.dtype))
        forward(impl, case, x, weight, bias, out=out)
        assert_same_bits(out, expected["y"], f"out {place}")


def check_thread_counts(
    impl: Any, case: Case, set_num_threads: Callable[[int], None], counts: Iterable[int]
) -> None:
    """Every thread count, and every repeat, gives the same bits: y, dx, dweight, dbias."""
    arrays = case.arrays()
    expected = None
    for count in counts:
        set_num_threads(count)
        for repeat in range(2):
            got = forward_and_backward(impl, case, *arrays)
            expected = expected or got
            for name, result in got.items():
                what = f"{name} on {count} threads, run {repeat}"
                assert_same_bits(result, expected[name], what)


def check_constant_rows_give_bias(impl: Any, case: Case) -> None:
    """Rows of one value give bias, exactly; without a bias, zero."""
    x, _, weight, bias = case.but(values="constant").arrays()
    y, _ = forward(impl, case, x, weight, bias)
    expected = _along_axes(bias, case, y)
    assert_equal_values(y, expected, "y of constant rows")


def _along_axes(bias: Array | None, case: Case, y: Array) -> Array:
    if bias is None:
        return np.zeros_like(y)
    axes = axes_of(case.axis, y.ndim)
    shape = [size if a in axes else 1 for a, size in enumerate(y.shape)]
    return np.broadcast_to(bias.reshape(shape), y.shape).astype(y.dtype)


def check_a_row_that_is_not_finite_stays_alone(impl: Any, case: Case, bad: float) -> None:
    """NaN or infinity in a row: that row of y and dx is NaN, the others keep their bits.

    `bad` goes to each column in turn, in x and then in dy.
    """
    x, dy, weight, bias = case.arrays()
    clean = forward_and_backward(impl, case, x, dy, weight, bias)
    rows = math.prod(case.statistics_shape)
    for col in range(math.prod(case.normalized_shape)):
        row = col % rows
        at = np.unravel_index(row, case.statistics_shape)
        place = list(at)
        within = np.unravel_index(col, case.normalized_shape)
        for axis, index in zip(axes_of(case.axis, x.ndim), within, strict=True):
            place[axis] = index
        for name in ("x", "dy"):
            given = {"x": x.copy(), "dy": dy.copy()}
            given[name][tuple(place)] = bad
            got = forward_and_backward(impl, case, given["x"], given["dy"], weight, bias)
            for result in ("y", "dx") if name == "x" else ("dx",):
                _assert_only_this_row_is_nan(
                    rows_of(got[result], case.axis),
                    rows_of(clean[result], case.axis),
                    row,
                    f"{result} for {bad} in {name} at {tuple(map(int, place))}",
                )
            if name == "dy":
                assert_same_bits(got["y"], clean["y"], "y")


def _assert_only_this_row_is_nan(got: Array, clean: Array, row: int, what: str) -> None:
    values = got[row].astype(np.float64)
    assert np.isnan(values).all(), f"{what}: the row has {values[~np.isnan(values)][:3]}, not NaN"
    others = np.arange(len(got)) != row
    assert_same_bits(got[others], clean[others], f"{what}: the other rows")


def check_read_only_inputs(impl: Any, case: Case) -> None:
    """Read-only inputs give the same bits."""
    arrays = case.arrays()
    expected = forward_and_backward(impl, case, *arrays)
    kept = (None if a is None else read_only(a) for a in arrays)
    for name, result in forward_and_backward(impl, case, *kept).items():
        assert_same_bits(result, expected[name], f"{name}, inputs read-only")


def check_zero_strides(impl: Any, case: Case) -> None:
    """Broadcast x and dy give the right answer."""
    x, dy, weight, bias = case.arrays()
    x = np.broadcast_to(x[:1], x.shape)
    for case_dy in (np.broadcast_to(dy[:1], dy.shape), np.broadcast_to(dy.ravel()[:1], dy.shape)):
        with unchanged(x=x, dy=case_dy):
            y, stats = forward(impl, case, x, weight, bias)
            gradients = backward(impl, case, case_dy, x, stats, weight)
        judge_y(case, y, x, weight, bias)
        judge_gradients(case, gradients, case_dy, x, weight)


def check_partial_overlap_is_rejected(impl: Any, case: Case) -> None:
    """An `out` that shares part of x's memory is a ValueError, and nothing is written."""
    _, _, weight, bias = case.arrays()
    shape = case.shape
    overlapping: tuple[Callable[[Array], tuple[Array, Array]], ...] = (
        lambda memory: (memory[:-1], memory[1:]),
        lambda memory: (memory[1:], memory[:-1]),
        lambda memory: (memory[1:], memory[1:][::-1]),
        lambda memory: (memory[1:], memory[1:][..., ::-1]),
    )
    for views in overlapping:
        memory = np.random.default_rng(2).standard_normal((shape[0] + 1, *shape[1:]))
        memory = memory.astype(dtype_of(case.dtype))
        x, out = views(memory)
        with unchanged(memory=memory), pytest.raises(ValueError, match="overlap"):
            forward(impl, case, x, weight, bias, out=out)


def check_other_types_are_rejected(impl: Any, kind: str, dtype: np.dtype) -> None:
    """A TypeError that names the type and says what to call."""
    called = r"\(x, np\.float32\)"
    with pytest.raises(TypeError, match=rf"{re.escape(dtype.name)}.*{called}"):
        getattr(impl, kind)(np.zeros((2, 3), dtype))
