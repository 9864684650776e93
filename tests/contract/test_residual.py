"""A residual: total = x + residual, y the norm of the stored total; dx with that of total added."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from calls import assert_same_bits, assert_same_numbers, backward, forward, unchanged
from cases import KINDS, Case, of_each_kind, residual_cases
from checkers import check_dtotal, check_residual
from layouts import Array, poisoned
from values import TYPES, dtype_of

import layernorm.numpy as ours
from layernorm import reference
from layernorm.numpy import functional

WIDE = ("float32", "float64")
CASES = of_each_kind(residual_cases)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)


@each_case
def test_total_is_the_sum_and_y_the_norm_of_the_stored_total(case: Case) -> None:
    check_residual(ours, case)


@each_case
def test_the_call_without_statistics_gives_the_same_bits(case: Case) -> None:
    x, _, weight, bias = case.arrays()
    residual, _ = case.residual()
    y, total, _ = forward(ours, case, x, weight, bias, residual=residual)
    parameters = (weight, bias) if case.kind == "layer_norm" else (weight,)
    got = getattr(ours, case.kind)(x, *parameters, residual=residual, **case.definition)
    assert_same_bits(got[0], y, "y")
    assert_same_bits(got[1], total, "total")


@each_case
def test_dx_is_within_its_bound_and_the_parameters_gradients_unchanged(case: Case) -> None:
    check_dtotal(ours, case)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.dtype in WIDE], ids=lambda case: case.id
)
def test_dx_of_float32_and_float64_has_the_bits_of_a_backward_and_an_addition(case: Case) -> None:
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    _, total, stats = forward(ours, case, x, weight, bias, residual=residual)
    dx, alone = (
        backward(ours, case, dy, total, stats, weight, dtotal=each)[0] for each in (dtotal, None)
    )
    assert_same_numbers(dx, reference.add(alone, dtotal), "dx")


@each_type
@each_kind
def test_16_bit_dx_is_rounded_once(kind: str, dtype: str) -> None:
    """The sum of a rounded gradient and dtotal differs in many elements."""
    case = Case(kind, dtype, 129)
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    _, total, stats = forward(ours, case, x, weight, bias, residual=residual)
    dx = backward(ours, case, dy, total, stats, weight, dtotal=dtotal)[0]
    alone = backward(ours, case, dy, total, stats, weight)[0]
    differ = (dx != reference.add(alone, dtotal)).mean()
    assert differ > 0.02 if dtype not in WIDE else differ == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_first_67", "axes_apart"])
@pytest.mark.parametrize("bad", ["nan", "nan of all ones", "inf"])
@each_type
@each_kind
def test_nan_and_infinity_in_dtotal_stay_in_their_element(
    kind: str, dtype: str, bad: str, layout: str
) -> None:
    case = Case(kind, dtype, 48, layout=layout)
    x, dy, weight, bias = case.arrays()
    _, dtotal = case.residual()
    _, stats = forward(ours, case, x, weight, bias)
    expected = backward(ours, case, dy, x, stats, weight, dtotal=dtotal)[0]
    dtotal = dtotal.copy()
    at = tuple(size // 2 for size in x.shape)
    if bad == "nan of all ones":  # whose rounding, done as a number's, would overflow
        dtotal.view(f"i{dtotal.itemsize}")[at] = -1
    else:
        dtotal[at] = float(bad)
    dx = backward(ours, case, dy, x, stats, weight, dtotal=dtotal)[0]
    assert np.array_equal(dx[at], dtotal[at], equal_nan=True)
    dx[at] = expected[at]
    assert_same_bits(dx, expected, "the other elements of dx")


@each_type
@each_kind
def test_an_infinite_sum_makes_its_row_nan(kind: str, dtype: str) -> None:
    largest = np.finfo(np.float16).max if dtype == "float16" else 3.3e38
    x = np.full((3, 65), largest if dtype != "float64" else 1.7e308).astype(dtype_of(dtype))
    x[::2] = 1
    y, total = getattr(ours, kind)(x, residual=x)
    assert np.isinf(total[1]).all()
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[::2].astype(np.float64)).all()


OVERWRITES: dict[str, Callable[[Array, Array], dict[str, Array]]] = {
    "total is residual": lambda x, residual: {"total": residual},
    "total is x": lambda x, residual: {"total": x},
    "out is x": lambda x, residual: {"out": x},
    "out is residual": lambda x, residual: {"out": residual},
    "both": lambda x, residual: {"out": x, "total": residual},
    "crosswise": lambda x, residual: {"out": residual, "total": x},
    "new": lambda x, residual: {
        "out": poisoned(x.shape, x.dtype),
        "total": poisoned(x.shape, x.dtype),
    },
}


@pytest.mark.parametrize("overwrites", OVERWRITES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_first_67", "axes_apart"])
@each_type
def test_out_and_total_may_be_x_and_residual(dtype: str, layout: str, overwrites: str) -> None:
    case = Case(dtype=dtype, cols=48, layout=layout)
    x, _, weight, bias = case.arrays()
    residual, _ = case.residual()
    expected_y, expected_total, _ = forward(ours, case, x, weight, bias, residual=residual)
    x, residual = x.copy(), residual.copy()
    given = OVERWRITES[overwrites](x, residual)
    y, total, _ = forward(ours, case, x, weight, bias, residual=residual, **given)
    assert y is given.get("out", y)
    assert total is given.get("total", total)
    assert_same_bits(y, expected_y, "y")
    assert_same_bits(total, expected_total, "total")


X = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
MEMORY = np.zeros((33, 64), np.float32)
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "shape": ({"residual": X[:, 1:]}, ValueError, r"residual .*\(32, 63\).*\(32, 64\)"),
    "would broadcast": ({"residual": X[0]}, ValueError, r"residual .*\(64,\).*\(32, 64\)"),
    "type": ({"residual": X.astype(np.float64)}, TypeError, "residual .*float64.*float32"),
    "16 bits": ({"residual": X.astype(np.float16)}, TypeError, "residual .*float16.*float32"),
    "integers": ({"residual": X.astype(int)}, TypeError, "residual .*int64.*float32"),
    "a number": ({"residual": 1.0}, TypeError, "residual .*float64.*float32"),
    "total alone": ({"total": X.copy()}, ValueError, "total .*residual"),
    "total overlaps x": (
        {"x": MEMORY[1:], "residual": X, "total": MEMORY[:-1]},
        ValueError,
        "total overlaps x in part",
    ),
    "total overlaps residual": (
        {"residual": MEMORY[1:], "total": MEMORY[:-1]},
        ValueError,
        "total overlaps residual in part",
    ),
    "out is total": (
        {"residual": X.copy(), "out": MEMORY[1:], "total": MEMORY[1:]},
        ValueError,
        "out overlaps total",
    ),
    "out overlaps residual": (
        {"residual": MEMORY[1:], "out": MEMORY[:-1]},
        ValueError,
        "out overlaps residual in part",
    ),
    "total of another type": (
        {"residual": X, "total": np.zeros_like(X, np.float64)},
        TypeError,
        "total .*float64.*float32",
    ),
    "total of another shape": (
        {"residual": X, "total": MEMORY},
        ValueError,
        r"total .*\(33, 64\).*\(32, 64\)",
    ),
    "total is read-only": (
        {"residual": X, "total": np.broadcast_to(X[0], X.shape)},
        ValueError,
        "total is read-only",
    ),
    "dropout": ({"residual": X, "dropout": 0.1}, TypeError, "dropout"),
    "save": ({"save": "output"}, TypeError, "save"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("function", ["", "_forward"])
@each_kind
def test_a_bad_residual_or_total_is_an_error_and_nothing_is_written(
    kind: str, function: str, name: str
) -> None:
    change, error, words = ERRORS[name]
    arguments = {"x": X} | change
    arrays = {each: value for each, value in arguments.items() if isinstance(value, np.ndarray)}
    with unchanged(**arrays), pytest.raises(error, match=words):
        getattr(ours, kind + function)(**arguments)


@each_kind
def test_a_bad_dtotal_is_an_error(kind: str) -> None:
    _, stats = getattr(ours, f"{kind}_forward")(X)
    for dtotal, error in ((X[:, 1:], ValueError), (X.astype(np.float64), TypeError)):
        with pytest.raises(error, match="dtotal"):
            getattr(ours, f"{kind}_backward")(X, X, stats, dtotal=dtotal)


@each_kind
def test_zero_rows_and_empty_rows(kind: str) -> None:
    for shape in ((0, 5), (3, 0)):
        x = np.zeros(shape, np.float32)
        y, total, stats = getattr(ours, f"{kind}_forward")(x, residual=x)
        assert y.shape == total.shape == shape
        dx = getattr(ours, f"{kind}_backward")(x, total, stats, dtotal=x)[0]
        assert dx.shape == shape


@each_type
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(dtype: str) -> None:
    case = Case(dtype=dtype, cols=257, values="mixed")
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    y, total, stats = forward(ours, case, x, weight, bias, residual=residual)
    dx = backward(ours, case, dy, total, stats, weight, dtotal=dtotal)[0]
    for row in range(len(x)):
        one = slice(row, row + 1)
        own_y, own_total, own = forward(ours, case, x[one], weight, bias, residual=residual[one])
        own_dx = backward(ours, case, dy[one], own_total, own, weight, dtotal=dtotal[one])[0]
        for got, expected in ((own_y, y), (own_total, total), (own_dx, dx)):
            assert_same_bits(got, expected[one], f"row {row}")


@pytest.mark.parametrize("kind", [ours.LayerNorm, ours.RMSNorm])
def test_layers_take_a_residual_and_its_gradient(kind: Any) -> None:
    rng = np.random.default_rng(1)
    x, residual, dy, dtotal = (rng.standard_normal((6, 8)).astype(np.float32) for _ in range(4))
    fused, plain = kind(8), kind(8)
    y, total = fused(x, residual)
    assert_same_bits(total, x + residual, "total")
    assert_same_bits(y, plain(total), "y")
    dx = fused.backward(dy, dtotal)
    assert_same_bits(dx, plain.backward(dy) + dtotal, "dx")
    assert fused.weight is not None
    assert_same_bits(fused.weight.grad, plain.weight.grad, "dweight")


@each_type
@each_kind
def test_the_general_path_gives_the_bits_of_the_fast_path(
    kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(kind, dtype, 129)
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()

    def results() -> list[Array]:
        y, total, stats = forward(ours, case, x, weight, bias, residual=residual)
        gradients = backward(ours, case, dy, total, stats, weight, dtotal=dtotal)
        return [y, total, *(each for each in gradients if each is not None)]

    fast = results()
    for name in ("try_forward_with_statistics", "try_backward"):
        monkeypatch.setattr(functional, name, lambda *_: None)
    for got, expected in zip(results(), fast, strict=True):
        assert_same_bits(got, expected, "a result")
