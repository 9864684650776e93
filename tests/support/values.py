"""Number types and named kinds of values: (rows, cols) in float64, to be rounded to a type."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TYPES = ("float16", "bfloat16", "float32", "float64")


class Limits(NamedTuple):
    largest: float
    smallest_normal: float
    smallest: float
    epsilon: float  # from 1 to the next


LIMITS = {
    "float16": Limits(65504.0, 2.0**-14, 2.0**-24, 2.0**-10),
    "bfloat16": Limits((2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133, 2.0**-7),
    "float32": Limits((2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149, 2.0**-23),
    "float64": Limits((2 - 2.0**-52) * 2.0**1023, 2.0**-1022, 2.0**-1074, 2.0**-52),
}


def dtype_of(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def parameter_types(name: str) -> tuple[str, ...]:
    return (name,) if name in ("float32", "float64") else (name, "float32")


def statistics_type(name: str) -> np.dtype:
    return np.dtype("float64" if name == "float64" else "float32")


Generator = Callable[[np.random.Generator, int, int, Limits], np.ndarray]
VALUES: dict[str, Generator] = {}


def _named(generator: Generator) -> Generator:
    VALUES[generator.__name__] = generator
    return generator


@_named
def ordinary(rng, rows, cols, limits):
    return rng.standard_normal((rows, cols))


@_named
def off_zero(rng, rows, cols, limits):
    """Sums over many rows grow, so a 16-bit sum would drop most of them."""
    return rng.standard_normal((rows, cols)) + 0.5


def _with_mean(name: str, mean: float) -> None:
    def generate(rng, rows, cols, limits):
        sign = np.where(np.arange(rows) % 2, -1.0, 1.0)[:, None]
        return sign * min(mean, limits.largest / 8) + rng.standard_normal((rows, cols))

    VALUES[name] = generate


_with_mean("mean_1e2", 1e2)
_with_mean("mean_1e4", 1e4)
_with_mean("mean_2_to_20", 2.0**20)


def _with_scale(name: str, scale: float) -> None:
    def generate(rng, rows, cols, limits):
        return rng.standard_normal((rows, cols)) * min(scale, limits.largest / 8)

    VALUES[name] = generate


_with_scale("scale_1e18", 1e18)
_with_scale("scale_1e30", 1e30)


@_named
def near_largest(rng, rows, cols, limits):
    """Squares and sums overflow, and so does x - mean for some pairs."""
    return rng.uniform(-1.0, 1.0, (rows, cols)) * limits.largest


@_named
def near_largest_one_sign(rng, rows, cols, limits):
    """The sum for the mean overflows from three elements on."""
    return rng.uniform(0.5, 1.0, (rows, cols)) * limits.largest


@_named
def smallest_normals(rng, rows, cols, limits):
    return rng.standard_normal((rows, cols)) * (4 * limits.smallest_normal)


@_named
def subnormals(rng, rows, cols, limits):
    return rng.integers(-100, 101, (rows, cols)) * limits.smallest


@_named
def constant(rng, rows, cols, limits):
    held = np.array([0.1, -3.0, 0.0, 1 / 3, limits.largest, -limits.smallest, 1e4, -0.0])
    return np.repeat(held[np.arange(rows) % held.size][:, None], cols, axis=1)


@_named
def ramp(rng, rows, cols, limits):
    return np.sort(rng.standard_normal((rows, cols)), axis=1)


@_named
def outlier(rng, rows, cols, limits):
    x = rng.standard_normal((rows, cols))
    x[np.arange(rows), rng.integers(0, cols, rows)] = 1e4
    return x


@_named
def first_is_outlier(rng, rows, cols, limits):
    """Shifting by the first element, as some kernels do, is of no help and may lose precision."""
    x = rng.standard_normal((rows, cols))
    x[:, 0] = 3e4
    return x


@_named
def two_values(rng, rows, cols, limits):
    """Every rounding of a row's xhat is one of two, so that they add up."""
    return np.where(rng.random((rows, cols)) < 0.5, 1.3, -0.7)


@_named
def alternating(rng, rows, cols, limits):
    sign = np.where(np.arange(cols) % 2, -1.0, 1.0)
    return sign * rng.uniform(1.0, 2.0, (rows, cols))


EVERY_KIND = len(VALUES)  # how many rows `mixed` needs


@_named
def mixed(rng, rows, cols, limits):
    """One row of each kind in turn, so that what leaks from one row shows in its neighbors."""
    kinds = [VALUES[name] for name in list(VALUES)[:EVERY_KIND]]
    return np.concatenate([kinds[row % EVERY_KIND](rng, 1, cols, limits) for row in range(rows)])
