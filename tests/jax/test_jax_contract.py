"""The JAX front end keeps the contract: NumPy's bits on the CPU, the bounds by the formulas."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from as_numpy_jax import AsNumpy, FormulasAsNumpy, FormulasByNumpy  # noqa: E402
from calls import assert_same_bits, forward_and_backward  # noqa: E402
from cases import (  # noqa: E402
    KINDS,
    Case,
    along_xhat_cases,
    dense_front_end_cases,
    dy_cases,
    eps_cases,
    of_each_kind,
    parameter_cases,
    value_cases,
)
from checkers import check_backward, check_batch_of_one, check_forward  # noqa: E402
from layouts import dense  # noqa: E402
from own_process import run_script  # noqa: E402
from values import TYPES  # noqa: E402

import layernorm.numpy as numpy_front_end  # noqa: E402
from layernorm.jax import definition, formulas  # noqa: E402

OURS, FORMULAS, FORMULAS_BY_NUMPY = AsNumpy(), FormulasAsNumpy(), FormulasByNumpy()


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


# 2503 rows: several blocks of sums, and more than one thread.
SEVERAL_BLOCKS = [
    Case(kind, dtype, 769, values="mean_1e4", rows=2503) for kind in KINDS for dtype in TYPES
]


# test_jax_kept_axes.py has more that vary along kept axes.
FRONT_END = [
    case
    for case in of_each_kind(dense_front_end_cases)
    if case.along is None or (case.kind, case.dtype) != ("rms_norm", "float16")
]


@each([*SEVERAL_BLOCKS, *FRONT_END])
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


# XLA on the CPU flushes subnormal numbers to 0. So the compiled formulas get no such values, and
# none whose gradients are that small.
ORDINARY = ("ordinary", "mean_1e4", "mean_2_to_20", "scale_1e18", "outlier", "alternating")
COMPILED = [
    *[
        Case(kind, dtype, 63, values=v)
        for kind, dtypes in (("layer_norm", TYPES), ("rms_norm", ("float32", "bfloat16")))
        for dtype in dtypes
        for v in ORDINARY
    ],
    Case("layer_norm", "float32", 24, layout="axes_apart", parameters="bias"),
    Case("layer_norm", "bfloat16", 24, layout="channels_first", parameters="weight zero_centered"),
]


@each(COMPILED)
def test_the_formulas_of_other_devices_are_within_the_bounds(case: Case) -> None:
    check_forward(FORMULAS, case)
    check_backward(FORMULAS, case)


@each([case for case in of_each_kind(along_xhat_cases) if "float16" not in case.dtype])
def test_the_formulas_are_within_the_bounds_for_dy_along_xhat(case: Case, monkeypatch) -> None:
    """NumPy runs the formulas, operation by operation."""
    for module in (formulas, definition):
        monkeypatch.setattr(module, "jnp", np)
    check_backward(FORMULAS_BY_NUMPY, case)


@each(
    [
        *[
            case
            for case in of_each_kind(value_cases, eps_cases, dy_cases, parameter_cases)
            if case.dtype == "float32" and case.cols != 1025
        ],
        # Long sums: over many rows, and over many columns.
        *[Case(kind, "float32", 3, values="off_zero", rows=10**5) for kind in KINDS],
        *[Case(kind, "float32", 2**20, values="mean_2_to_20", rows=1) for kind in KINDS],
    ]
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_formulas_are_within_the_bounds_where_subnormals_are_kept(case, monkeypatch) -> None:
    """NumPy runs the formulas, operation by operation."""
    for module in (formulas, definition):
        monkeypatch.setattr(module, "jnp", np)
    check_forward(FORMULAS_BY_NUMPY, case)
    check_backward(FORMULAS_BY_NUMPY, case)


def test_constant_rows_give_exactly_bias_in_the_formulas() -> None:
    for dtype in TYPES:
        case = Case(dtype=dtype, cols=63, values="constant")
        x, _, weight, bias = case.arrays()
        y, _ = FORMULAS.layer_norm_forward(x, weight, bias, **case.definition)
        np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))


@pytest.mark.parametrize("threads", [1, 16])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads) -> None:
    """PJRT reads the number of threads when it starts, so each number has a process of its own."""
    script = Path(__file__).parents[1] / "support" / "digest_of_results.py"
    digest = run_script(script, NPROC=str(threads)).split()
    if jax.__version_info__ >= (0, 8):  # older versions do not name the threads
        assert int(digest[0]) == threads
    case = Case(cols=768, rows=2503)
    x, dy, weight, bias = case.arrays()
    expected = forward_and_backward(numpy_front_end, case, x, dy, weight, bias)
    names = ("y", "dx", "dweight", "dbias")
    assert digest[1:] == [hashlib.sha256(expected[name].tobytes()).hexdigest() for name in names]
