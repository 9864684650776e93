"""Problems with nothing special about them, so that any wrong element, stride or term shows."""

import ml_dtypes
import numpy as np

RNG = np.random.default_rng(20)


def a_problem(shape=(6, 13), axis=-1, dtype=np.float64):
    """Draw x, weight, bias and dy: no weight is one, no bias zero, every row has a mean."""
    axes = tuple(sorted(np.atleast_1d(np.arange(len(shape))[np.r_[axis]])))
    parameters = [shape[each] for each in axes]
    x = (RNG.normal(size=shape) + 3.0).astype(dtype)
    weight = RNG.uniform(0.5, 2.0, parameters).astype(dtype)
    bias = RNG.normal(size=parameters).astype(dtype)
    return x, weight, bias, RNG.normal(size=shape).astype(dtype)


def assert_close(got, expected, dtype=np.float64):
    """Accuracy has its own tests; here a wrong element or stride is to be seen."""
    tolerance = 8 * float(ml_dtypes.finfo(dtype).eps)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(
        np.asarray(got, np.float64), expected, rtol=tolerance, atol=tolerance * scale
    )
