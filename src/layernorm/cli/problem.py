"""One layer norm or RMS norm to compute: the arrays that every provider is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from layernorm.accuracy import Kind

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]

TYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Problem:
    """x, normalized over `axis`; weight and bias of x's type and of shape (cols,); dy like x.

    RMS norm has no bias: take the `parameters`.
    """

    x: Array
    weight: Array
    bias: Array
    dy: Array
    axis: int = -1
    eps: float = 1e-5
    kind: Kind = "layer_norm"
    _converted: dict[str, tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False)

    def arrays_of(self, framework: str, convert: Callable[[Array], Any]) -> tuple[Any, ...]:
        """Return x, the parameters and dy as the framework holds them, converted once."""
        if framework not in self._converted:
            arrays = (self.x, *self.parameters, self.dy)
            self._converted[framework] = tuple(map(convert, arrays))
        return self._converted[framework]

    @property
    def parameters(self) -> tuple[Array, ...]:
        """The weight and, for layer norm, the bias."""
        return (self.weight, self.bias) if self.kind == "layer_norm" else (self.weight,)

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
        """The permutation that moves the normalized axis to the end."""
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
    """Name the types that can be measured here: bfloat16 needs ml_dtypes."""
    try:
        number_type("bfloat16")
    except ModuleNotFoundError:
        return tuple(name for name in TYPES if name != "bfloat16")
    return TYPES


def ordinary_arrays(
    normal: Callable[[Sequence[int]], Any],
    shape: Sequence[int],
    *,
    axis: int | Sequence[int] = -1,
    mean: float = 3.0,
) -> tuple[Any, Any, Any, Any]:
    """Draw x, weight, bias and dy such that any wrong element, stride or term shows.

    The weights are not ones, though around 1; the biases not zeros; x and dy have means.

    Args:
        normal: draws standard normal numbers of a given shape, as arrays of any framework.
        shape: of x and dy.
        axis: those of the weight and bias, in increasing order.
        mean: of x.
    """
    axes = (axis,) if isinstance(axis, int) else axis
    parameters = tuple(shape[each] for each in axes)
    weight, bias = 1 + normal(parameters) / 2, normal(parameters)
    return mean + normal(shape), weight, bias, 0.5 + normal(shape)


def make_problem(
    shape: Shape,
    type_name: str,
    *,
    x: Array | None = None,
    axis: int = -1,
    eps: float = 1e-5,
    kind: Kind = "layer_norm",
    mean: float = 3.0,
    seed: int = 0,
) -> Problem:
    """Draw the ordinary problem of a shape and type, the same each time; `x` may be given."""
    dtype = number_type(type_name)
    rng = np.random.default_rng([seed, *shape])
    drawn_as = np.float64 if dtype.itemsize == 8 else np.float32
    normal = partial(rng.standard_normal, dtype=drawn_as)
    drawn_x, *others = ordinary_arrays(normal, shape, axis=axis, mean=mean)
    arrays = [drawn_x if x is None else x, *others]
    x, weight, bias, dy = (each.astype(dtype, copy=False) for each in arrays)
    return Problem(x, weight, bias, dy, axis=axis, eps=eps, kind=kind)
