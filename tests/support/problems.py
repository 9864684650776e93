"""The ordinary problem as four NumPy arrays."""

import ml_dtypes
import numpy as np

from layernorm.cli.problem import ordinary_arrays

RNG = np.random.default_rng(20)


def a_problem(shape=(6, 13), axis=-1, dtype=np.float64):
    """Draw x, weight, bias and dy; other numbers each time."""
    arrays = ordinary_arrays(RNG.standard_normal, shape, axis=axis)
    return tuple(each.astype(dtype) for each in arrays)


def assert_close(got, expected, dtype=np.float64, *, scale=1.0):
    """Accuracy has its own tests; here a wrong element or stride is to be seen.

    `scale`: of what expected is a difference of, if that is larger than itself.
    """
    tolerance = 8 * float(ml_dtypes.finfo(dtype).eps)
    scale = max(scale, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(
        np.asarray(got, np.float64), expected, rtol=tolerance, atol=tolerance * scale
    )
