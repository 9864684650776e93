"""One layer norm to compute: the arrays that every provider is given."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

TYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Problem:
    """x, normalized over `axis`; weight and bias of x's type and of shape (cols,); dy like x."""

    x: Array
    weight: Array
    bias: Array
    dy: Array
    axis: int = -1
    eps: float = 1e-5
    converted: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The same arrays as a framework holds them, so that providers can share them."""

    @property
    def type_name(self) -> str:
        """The type of x: "float32"."""
        return self.x.dtype.name

    @property
    def cols(self) -> int:
        """Elements in a row."""
        return int(self.x.shape[self.axis])

    @property
    def is_channels_first(self) -> bool:
        """Whether the normalized axis is the second of (N, C, ...)."""
        return self.axis == 1 and self.x.ndim > 2

    @cached_property
    def channels_last(self) -> tuple[int, ...]:
        """The permutation that makes the normalized axis the last."""
        return (*(each for each in range(self.x.ndim) if each != self.axis), self.axis)

    @cached_property
    def channels_back(self) -> tuple[int, ...]:
        """The permutation that undoes `channels_last`."""
        return tuple(int(each) for each in np.argsort(self.channels_last))


def number_type(name: str) -> np.dtype[Any]:
    """Turn "bfloat16" and the like into a NumPy type. ModuleNotFoundError without ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def available_types() -> tuple[str, ...]:
    """Name the types that can be measured here: all but bfloat16 where ml_dtypes is missing."""
    try:
        number_type("bfloat16")
    except ModuleNotFoundError:
        return tuple(name for name in TYPES if name != "bfloat16")
    return TYPES


def make_problem(
    x: Array, type_name: str, *, axis: int = -1, eps: float = 1e-5, seed: int = 0
) -> Problem:
    """Round `x` to a type and draw what goes with it.

    The weights are not ones, the biases not zeros, and dy has a mean: what a wrong gradient would
    leave out shows.
    """
    dtype = number_type(type_name)
    rng = np.random.default_rng([seed, *x.shape])
    cols = x.shape[axis]
    dy = np.asarray(rng.standard_normal(x.shape, dtype=np.float32))
    dy += 1
    return Problem(
        x=x.astype(dtype, copy=False),
        weight=rng.standard_normal((cols,), dtype=np.float32).astype(dtype),
        bias=rng.standard_normal((cols,), dtype=np.float32).astype(dtype),
        dy=dy.astype(dtype, copy=False),
        axis=axis,
        eps=eps,
    )
