"""The inputs that `layernorm check` measures, each of a kind that some layer norms get wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from layernorm.cli.problem import TYPES, Array, Problem, Shape, make_problem

WIDE_RANGE = ("float32", "bfloat16", "float64")
"""The types that hold 1e30."""

LARGEST = {
    "float16": 65504.0,
    "bfloat16": (2 - 2.0**-7) * 2.0**127,
    "float32": (2 - 2.0**-23) * 2.0**127,
    "float64": (2 - 2.0**-52) * 2.0**1023,
}

FINE = ("float32", "float64")
"""The types in which rows 2**20 standard deviations from zero still vary."""


@dataclass(frozen=True)
class Input:
    """Rows of one kind. `values` draws float64 numbers, which are then rounded to a type."""

    name: str
    shape: Shape
    values: Callable[[np.random.Generator, Shape, float], Array]
    axis: int = -1
    eps: float = 1e-5
    types: tuple[str, ...] = TYPES

    def problem(self, type_name: str) -> Problem:
        """Draw the problem in a type; the same numbers each time."""
        rng = np.random.default_rng([len(self.name), *self.shape])
        x = self.values(rng, self.shape, LARGEST[type_name])
        return make_problem(self.shape, type_name, x=x, axis=self.axis, eps=self.eps)


def inputs(*, quick: bool) -> list[Input]:
    """List the inputs; with `quick`, the same kinds in smaller arrays."""
    rows = 16 if quick else 48
    return [
        Input("ordinary", (rows, 768), _normal(0, 1)),
        Input("odd width", (rows, 769), _normal(0, 1)),
        Input("3 columns", (rows, 3), _normal(0, 1)),
        Input("long rows", (2, 2**16 + 1 if quick else 2**20), _normal(0, 1)),
        Input("mean 1e2 std", (rows, 768), _normal(1e2, 1)),
        Input("mean 1e4 std", (rows, 768), _normal(1e4, 1), types=FINE),
        Input("mean 2^20 std", (rows, 768), _normal(2**20, 1), types=FINE),
        Input("scale 1e18", (rows, 768), _normal(0, 1e18), types=WIDE_RANGE),
        Input("scale 1e30", (rows, 768), _normal(0, 1e30), types=WIDE_RANGE),
        Input("up to largest", (rows, 768), _largest_numbers),
        Input("1e-20, eps 0", (rows, 768), _normal(0, 1e-20), eps=0.0, types=WIDE_RANGE),
        Input("subnormal", (rows, 768), _subnormal),
        Input("constant rows", (rows, 768), _constant),
        Input("constant, eps 0", (rows, 768), _constant, eps=0.0),
        Input("1 column", (rows, 1), _normal(5, 1)),
        Input("many rows", (2**14 if quick else 2**17, 16), _normal(0, 1)),
        Input("channels first", (2 if quick else 8, 96, 7, 9), _normal(0.5, 1), axis=1),
    ]


def _normal(mean: float, std: float) -> Callable[[np.random.Generator, Shape, float], Array]:
    def values(rng: np.random.Generator, shape: Shape, largest: float) -> Array:
        return mean + std * rng.standard_normal(shape)

    return values


def _largest_numbers(rng: np.random.Generator, shape: Shape, largest: float) -> Array:
    return rng.uniform(-1, 1, shape) * largest


def _subnormal(rng: np.random.Generator, shape: Shape, largest: float) -> Array:
    return rng.uniform(-2, 2, shape) / largest


def _constant(rng: np.random.Generator, shape: Shape, largest: float) -> Array:
    row = rng.uniform(-1, 1, (shape[0], 1)) * 10.0 ** rng.integers(-4, 4, (shape[0], 1))
    return np.broadcast_to(row, shape)
