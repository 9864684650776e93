"""The ordinary problem as four NumPy arrays."""

import ml_dtypes
import numpy as np

from layernorm.cli.problem import ordinary_arrays

RNG = np.random.default_rng(20)


def a_problem(shape=(6, 13), axis=-1, dtype=np.float64):
    """Draw x, weight, bias and dy; other numbers each time."""
    arrays = ordinary_arrays(RNG.standard_normal, shape, axis=axis)
    return tuple(each.astype(dtype) for each in arrays)


def assert_close(got, expected, dtype=np.float64):
    """Accuracy has its own tests; here a wrong element or stride is to be seen."""
    tolerance = 8 * float(ml_dtypes.finfo(dtype).eps)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(
        np.asarray(got, np.float64), expected, rtol=tolerance, atol=tolerance * scale
    )
