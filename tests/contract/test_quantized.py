"""8 bits: q is y / scale, exactly rounded, where y is what `layer_norm` returns."""

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from calls import assert_same_bits, unchanged
from cases import KINDS, Case, of_each_kind, quantized_cases
from checkers import check_quantized
from layouts import Array
from values import TYPES, dtype_of, statistics_type

import layernorm.numpy as ours
from layernorm import reference, spec

CASES = of_each_kind(quantized_cases)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)
each_quantized_type = pytest.mark.parametrize("q_type", spec.QUANTIZED_TYPES)


@each_case
def test_q_and_the_scales_are_those_of_y(case: Case) -> None:
    check_quantized(ours, case)


@each_kind
@each_type
def test_rows_of_several_parts(kind: str, dtype: str) -> None:
    check_quantized(ours, Case(kind, dtype, 70_000, values="outlier", rows=2))


@each_kind
@each_type
@each_quantized_type
def test_q_times_scale_is_near_the_exact_norm(kind: str, dtype: str, q_type: str) -> None:
    """Within half a step of q, and y's own rounding."""
    case = Case(kind, dtype, 769, parameters="weight")
    x, _, weight, _ = case.arrays()
    q, scales = getattr(ours, f"quantized_{kind}")(x, weight, dtype=q_type)
    exact = getattr(reference, kind)(x, weight, eps=case.eps if kind == "layer_norm" else 1e-6)
    q = q.astype(np.float64)
    step = np.ones_like(q)
    if q_type != "int8":
        info = ml_dtypes.finfo(q_type)
        step = 2.0 ** np.maximum(np.floor(np.log2(np.maximum(np.abs(q), 1e-9))), info.minexp)
        step *= float(info.eps)
    y_is_off = {"bfloat16": 2.0**-8, "float16": 2.0**-11}.get(dtype, 1e-6)
    allowed = 0.5 * step * scales + y_is_off * np.abs(exact) * 1.01
    assert (np.abs(q * scales - exact) <= allowed * 1.0001).all()


def everything_near(dtype: np.dtype) -> Array:
    """Return every number of the 8-bit types and every midpoint, and the numbers beside these."""
    found = [np.arange(-130, 131) / 2]
    for q_type in ("float8_e4m3fn", "float8_e5m2"):
        every = np.arange(256, dtype=np.uint8).view(q_type).astype(np.float64)
        every = np.sort(every[np.isfinite(every)])
        found += [every, (every[1:] + every[:-1]) / 2, 1.03 * every]
    numbers = np.concatenate(found).astype(dtype)
    beside = [np.nextafter(numbers, dtype.type(to)) for to in (-1e6, 1e6)]
    return np.concatenate([numbers, *beside])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_quantized_type
def test_every_number_midpoint_and_neighbor_is_rounded_to_nearest_even(
    dtype: str, q_type: str
) -> None:
    """A row of ones is its own RMS norm: y is the weight, and q is y rounded with a scale of 1."""
    y = everything_near(np.dtype(dtype))
    ones = np.ones((1, len(y)), dtype)
    q = ours.quantized_rms_norm(ones, y, eps=0.0, dtype=q_type, scale=1.0)[0]
    expected, _ = reference.quantize(y, q_type, 1.0)
    np.testing.assert_array_equal(q.astype(np.float64), expected)
    # ml_dtypes rounds the same, but does not saturate, and rounds float64 twice.
    inside = np.abs(y) <= spec.QUANTIZED_TYPES[q_type]
    if q_type != "int8" and dtype == "float32":
        assert_same_bits(q[inside], y[inside].astype(q_type), "q")
    top = spec.QUANTIZED_TYPES[q_type]
    assert q.astype(np.float64).max() == top
    assert q.astype(np.float64).min() == (-128 if q_type == "int8" else -top)


@each_type
@each_quantized_type
def test_zeros_nan_infinity_and_tiny_numbers(dtype: str, q_type: str) -> None:
    """The weight is what each element of y is; the bias would hide the sign of zero."""
    smallest = np.finfo(statistics_type(dtype)).smallest_normal
    most = spec.QUANTIZED_TYPES[q_type]

    def of(*y: float) -> tuple[list[float], float]:
        weight = np.array(y).astype(dtype_of(dtype))
        weight.view(f"u{weight.itemsize}")[np.isnan(y)] = 2 ** (8 * weight.itemsize) - 1
        ones = np.ones((1, len(y)), dtype_of(dtype))
        q, scales = ours.quantized_rms_norm(ones, weight, eps=0.0, dtype=q_type)
        return q[0].astype(np.float64).tolist(), float(scales[0, 0])

    assert of(0.0, -0.0, 0.0) == ([0, 0, 0], smallest)
    q, scale = of(1.0, math.nan, -2.0)
    assert math.isnan(scale)
    assert all(each == 0 for each in q) if q_type == "int8" else all(map(math.isnan, q))
    q, scale = of(1.0, math.inf, -2.0)
    assert scale == math.inf
    assert q[::2] == [0, 0]
    if dtype in ("bfloat16", "float32", "float64"):  # whose largest |y| / m is not normal
        tiny = float(smallest)
        assert of(tiny, -3 * tiny, 0.0) == ([1, -3, 0], smallest)
    assert of(most, -most, most / 2)[1] == 1
    x = np.zeros((2, 8), dtype_of(dtype))
    x[1, 3] = np.nan
    q, scales = ours.quantized_layer_norm(x, dtype=q_type)
    assert scales[0, 0] == smallest
    assert np.isnan(scales[1, 0])
    given = ours.quantized_layer_norm(x, dtype=q_type, scale=0.5).astype(np.float64)
    assert (given[0] == 0).all()
    assert (given[1] == 0).all() if q_type == "int8" else np.isnan(given[1]).all()


def test_a_y_that_float16_cannot_hold_is_infinite_first() -> None:
    ones, weight = np.ones((1, 2), np.float16), np.array([6e4, 1.0], np.float16)
    q, scales = ours.quantized_rms_norm(ones, weight, eps=0.0, zero_centered_weight=True)
    assert scales[0, 0] == np.float32(6e4) / np.float32(127)  # 1 + 6e4 is rounded to 6e4
    weight[0] = 65504
    x = np.array([[1.0, 0.0]], np.float16)  # norm: sqrt(2), 0
    q, scales = ours.quantized_rms_norm(x, weight, eps=0.0)
    assert np.isinf(scales[0, 0])
    assert q[0, 1] == 0


@each_type
@each_quantized_type
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(dtype: str, q_type: str) -> None:
    for case in (Case(dtype=dtype, cols=257), Case(dtype=dtype, cols=70_000, rows=2)):
        x, _, weight, bias = case.arrays()
        q, scales = ours.quantized_layer_norm(x, weight, bias, dtype=q_type)
        for row in range(len(x)):
            one = slice(row, row + 1)
            q_of_one, scale = ours.quantized_layer_norm(x[one], weight, bias, dtype=q_type)
            assert_same_bits(q_of_one.view(np.uint8), q[one].view(np.uint8), f"q of row {row}")
            assert_same_bits(scale, scales[one], f"scale of row {row}")


@pytest.mark.parametrize("shape", [(300, 1025), (1, 140_000), (2, 70_000), (3, 40, 700)])
@pytest.mark.parametrize("scale", [None, 0.03])
def test_the_thread_count_changes_no_bit(
    shape: tuple[int, ...], scale: float | None, set_num_threads: Callable[[int], None]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    axis = 1 if len(shape) == 3 else -1

    def results(threads: int) -> list[Array]:
        set_num_threads(threads)
        result = ours.quantized_layer_norm(x, axis=axis, scale=scale)
        return [result] if scale is not None else list(result)

    for got, expected in zip(results(4), results(1), strict=True):
        assert_same_bits(got, expected, "a result")


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0), (2, 0, 3)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    q, scales = ours.quantized_layer_norm(np.zeros(shape, np.float32))
    assert q.shape == shape
    assert q.dtype == np.int8
    assert scales.shape == (*shape[:-1], 1)
    assert (scales == np.finfo(np.float32).smallest_normal).all()


@pytest.mark.parametrize("dtype", [np.int8, "int8", np.dtype("int8"), ml_dtypes.float8_e5m2])
def test_the_type_may_be_a_name_or_a_type(dtype: Any) -> None:
    q, _ = ours.quantized_layer_norm(X, dtype=dtype)
    assert q.dtype == np.dtype(dtype)


def test_the_scale_may_be_any_single_number() -> None:
    expected = ours.quantized_layer_norm(X, scale=0.25)
    for scale in (np.float64(0.25), np.array(0.25), np.array([0.25], np.float32), 1 / 4):
        assert_same_bits(ours.quantized_layer_norm(X, scale=scale), expected, "q")


def test_a_scale_of_float64_may_be_of_any_size() -> None:
    for scale in (1e-300, 2.0**-126, 1e300):
        q = ours.quantized_layer_norm(X.astype(np.float64), scale=scale)
        assert q.min() == (0 if scale > 1 else -128)
    for scale in (2.0**-126, 3e38):
        assert ours.quantized_layer_norm(X, scale=scale).shape == X.shape


X = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another type": ({"dtype": "uint8"}, TypeError, "uint8.*int8, float8_e4m3fn or float8_e5m2"),
    "wide type": ({"dtype": np.float32}, TypeError, "float32.*int8"),
    "no type": ({"dtype": "int9"}, TypeError, "int9.*int8"),
    "scale of zero": ({"scale": 0.0}, ValueError, "scale is 0.0.*positive"),
    "negative scale": ({"scale": -1}, ValueError, "scale is -1.0.*positive"),
    "scale of NaN": ({"scale": math.nan}, ValueError, "scale is nan.*positive"),
    "infinite scale": ({"scale": math.inf}, ValueError, "scale is inf.*finite"),
    "scale below float32": ({"scale": 1e-60}, ValueError, "scale is 1e-60.*normal.*float32"),
    "scale above float32": ({"scale": 4e38}, ValueError, "scale is 4e.38.*normal.*float32"),
    "scale that float32 rounds to infinity": (
        {"scale": 2.0**128 - 2.0**103},
        ValueError,
        "scale is 3.4028235.*normal.*float32",
    ),
    "scales of rows": ({"scale": np.ones((32, 1))}, ValueError, r"scale has shape \(32, 1\).*one"),
    "text": ({"scale": "1"}, TypeError, "scale is '1'.*number"),
    "flag": ({"scale": True}, TypeError, "scale is True.*number"),
    "x": ({"x": X.astype(int)}, TypeError, "int64"),
    "weight": ({"weight": X[0, :5]}, ValueError, r"\(5,\).*\(64,\)"),
    "axis": ({"axis": 2}, ValueError, "axis"),
    "eps": ({"eps": -1.0}, ValueError, "eps"),
}


@pytest.mark.parametrize("name", ERRORS)
@each_kind
def test_a_bad_call_is_an_error(kind: str, name: str) -> None:
    change, error, words = ERRORS[name]
    with unchanged(x=X), pytest.raises(error, match=words):
        getattr(ours, f"quantized_{kind}")(**{"x": X} | change)
