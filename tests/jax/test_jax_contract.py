"""The contract, kept by the JAX front end: NumPy's bits on the CPU, the bounds by the formulas."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from as_numpy_jax import AsNumpy, FormulasAsNumpy  # noqa: E402
from calls import assert_same_bits, forward_and_backward  # noqa: E402
from cases import (  # noqa: E402
    KINDS,
    Case,
    dy_cases,
    eps_cases,
    layout_cases,
    of_each_kind,
    parameter_cases,
    value_cases,
    width_cases,
)
from checkers import check_batch_of_one  # noqa: E402
from layouts import Array  # noqa: E402
from values import TYPES  # noqa: E402

import layernorm.numpy as numpy_front_end  # noqa: E402

OURS, FORMULAS = AsNumpy(), FormulasAsNumpy()


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def dense(array: Array | None) -> Array | None:
    """JAX's arrays are dense: which memory the rows lie in is the shape's matter alone."""
    return None if array is None else np.array(array, array.dtype.newbyteorder("="), order="C")


# 2503 rows: several blocks of sums, and more than one thread.
SEVERAL_BLOCKS = [
    Case(kind, dtype, 769, values="mean_1e4", rows=2503) for kind in KINDS for dtype in TYPES
]


@each(
    SEVERAL_BLOCKS
    + of_each_kind(width_cases, value_cases, layout_cases, eps_cases, dy_cases, parameter_cases)
)
def test_the_bits_are_those_of_the_numpy_front_end(case: Case) -> None:
    x, dy, weight, bias = map(dense, case.arrays())
    expected = forward_and_backward(numpy_front_end, case, x, dy, weight, bias)
    got = OURS.forward_and_backward(case, x, dy, weight, bias)
    for name, result in expected.items():
        assert_same_bits(got[name], result, name)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(kind, dtype) -> None:
    check_batch_of_one(OURS, Case(kind, dtype, 257, rows=37))
