"""A case of the soak test: a call of a front end, in one line that can be pasted into a test."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import cases
import numpy as np
from layouts import Array, Memory, axes_of, from_rows, laid_out
from values import LIMITS, VALUES, Limits, dtype_of


def zeros(rng: np.random.Generator, rows: int, cols: int, limits: Limits) -> Array:
    return np.zeros((rows, cols))


def signed_zeros(rng: np.random.Generator, rows: int, cols: int, limits: Limits) -> Array:
    return np.copysign(0.0, rng.standard_normal((rows, cols)))


def any_magnitude(rng: np.random.Generator, rows: int, cols: int, limits: Limits) -> Array:
    """Numbers from the smallest to the largest side by side."""
    exponents = rng.uniform(np.log2(limits.smallest), np.log2(limits.largest), (rows, cols))
    return np.copysign(2.0**exponents, rng.standard_normal((rows, cols)))


def not_finite(rng: np.random.Generator, rows: int, cols: int, limits: Limits) -> Array:
    """Every third row or so has a NaN or an infinity, some have several."""
    numbers = rng.standard_normal((rows, cols))
    for _ in range(2):
        chosen = np.flatnonzero(rng.random(rows) < 0.2)
        bad = rng.choice([np.nan, np.inf, -np.inf], chosen.size)
        numbers[chosen, rng.integers(0, cols, chosen.size)] = bad
    return numbers


def tiny(rng: np.random.Generator, rows: int, cols: int, limits: Limits) -> Array:
    return rng.standard_normal((rows, cols)) * 1e-3


def large(rng: np.random.Generator, rows: int, cols: int, limits: Limits) -> Array:
    return rng.standard_normal((rows, cols)) * 30.0


ALL_VALUES = VALUES | {
    each.__name__: each for each in (zeros, signed_zeros, any_magnitude, not_finite, tiny, large)
}


@dataclass(frozen=True, repr=False)
class Case(cases.Case):
    """A case with a shape, axes and memory of its own, not those of a named layout."""

    framework: str = "numpy"
    way: str = "functions"  # how the front end is called: see WAYS in draw.py
    shape: tuple[int, ...] = (2, 3)
    axis: int | tuple[int, ...] = -1
    parameter_values: str = "ordinary"
    passes_eps: bool = True  # False: eps is the front end's default, and left out
    need: str = "dx dweight dbias"  # the gradients; "": forward only
    x_memory: Memory | None = None
    dy_memory: Memory | None = None
    parameter_memory: Memory | None = None
    threads: int = 1
    also: str = ""  # a further check: see FURTHER in judge.py

    def __repr__(self) -> str:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        default = {each.name: each.default for each in fields(self)}
        shown = [f"{name}={value!r}" for name, value in given.items() if value != default[name]]
        return f"Case({', '.join(shown)})"

    @property
    def axes(self) -> tuple[int, ...]:
        return axes_of(self.axis, len(self.shape))

    @property
    def has_trailing_axes(self) -> bool:
        return self.axes == tuple(range(len(self.shape) - len(self.axes), len(self.shape)))

    @property
    def is_contiguous(self) -> bool:
        return self.x_memory is None and self.dy_memory is None

    @property
    def options(self) -> dict[str, object]:
        """The keywords of a call."""
        options = dict(self.definition)
        if not self.passes_eps:
            del options["eps"]
        return options

    def needs(self, gradient: str) -> bool:
        return gradient in self.need.split()

    def arrays(self) -> cases.Arrays:
        """Make x, dy, weight and bias, the same on every call."""
        x, dy = (
            self._placed(self._rows(values, part), memory)
            for part, (values, memory) in enumerate(
                ((self.values, self.x_memory), (self.dy_values, self.dy_memory))
            )
        )
        weight, bias = (self._parameter(part) for part in (2, 3))
        return cases.Arrays(
            x, dy, weight if self.has_weight else None, bias if self.has_bias else None
        )

    def _rows(self, values: str, part: int) -> Array:
        rows, cols = math.prod(self.statistics_shape), math.prod(self.normalized_shape)
        numbers = self._numbers(values, part, rows, cols, self.dtype)
        return from_rows(numbers, self.shape, self.axis)

    def _parameter(self, part: int) -> Array:
        cols = math.prod(self.normalized_shape)
        dtype = self.parameter_dtype or self.dtype
        numbers = self._numbers(self.parameter_values, part, 1, cols, dtype)
        return self._placed(numbers.reshape(self.normalized_shape), self.parameter_memory)

    def _numbers(self, values: str, part: int, rows: int, cols: int, dtype: str) -> Array:
        if rows * cols == 0:
            return np.zeros((rows, cols), dtype_of(dtype))
        limits = LIMITS[dtype]
        generate: Callable[..., Array] = ALL_VALUES[values]
        numbers = generate(np.random.default_rng([self.seed, part]), rows, cols, limits)
        clipped = numbers.clip(-limits.largest, limits.largest)
        return np.where(np.isfinite(numbers), clipped, numbers).astype(dtype_of(dtype))

    def _placed(self, array: Array, memory: Memory | None) -> Array:
        return array if memory is None else laid_out(array, memory)
