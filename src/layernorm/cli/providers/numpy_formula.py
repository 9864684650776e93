"""The formula as people write it in NumPy: in float32 for 16-bit types, else in the type of x."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np

from layernorm.cli.problem import Array, Problem
from layernorm.cli.providers.provider import Call, Provider


class NumpyFormula(Provider):
    """The formula of the norm: one array operation after another."""

    name: ClassVar[str] = "numpy"
    distribution: ClassVar[str] = "numpy"

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Return the call of the formula, each of whose operations makes a new array."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        return partial(_forward if problem.kind == "layer_norm" else _rms_forward, problem)

    def backward(self, problem: Problem) -> Call:
        """Return the call of the formula for the gradients, given the statistics."""
        x = _widened(problem.x)
        if problem.kind == "rms_norm":
            return partial(_rms_backward, problem, _rms_rstd(x, problem))
        mean, rstd = _statistics(x, problem)
        return partial(_backward, problem, mean, rstd)


class NumpyFunction(Provider):
    """Some function of x and the parameters; NumPy has no gradients."""

    def function(self, problem: Problem) -> Callable[..., Array]:
        """Return y = f(x, *parameters)."""
        raise NotImplementedError

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Call it on the arrays."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        return partial(self.function(problem), problem.x, *problem.parameters)


def _forward(problem: Problem) -> Array:
    with np.errstate(all="ignore"):
        x = _widened(problem.x)
        mean, rstd = _statistics(x, problem)
        y = (x - mean) * rstd * _along(problem.weight, problem) + _along(problem.bias, problem)
        return y.astype(problem.x.dtype, copy=False)


def _backward(problem: Problem, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    with np.errstate(all="ignore"):
        axis, others = problem.axis, _other_axes(problem)
        x, dy = _widened(problem.x), _widened(problem.dy)
        xhat = (x - mean) * rstd
        g = dy * _along(problem.weight, problem)
        projection = xhat * (g * xhat).mean(axis, keepdims=True)
        dx = rstd * (g - g.mean(axis, keepdims=True) - projection)
        dweight, dbias = (dy * xhat).sum(others), dy.sum(others)
        return (
            dx.astype(problem.x.dtype, copy=False),
            dweight.astype(problem.weight.dtype, copy=False),
            dbias.astype(problem.bias.dtype, copy=False),
        )


def _statistics(x: Array, problem: Problem) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        mean = x.mean(problem.axis, keepdims=True)
        var = x.var(problem.axis, keepdims=True)
        return mean, 1 / np.sqrt(var + x.dtype.type(problem.eps))


def _rms_forward(problem: Problem) -> Array:
    with np.errstate(all="ignore"):
        x = _widened(problem.x)
        y = x * _rms_rstd(x, problem) * _along(problem.weight, problem)
        return y.astype(problem.x.dtype, copy=False)


def _rms_backward(problem: Problem, rstd: Array) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        x, dy = _widened(problem.x), _widened(problem.dy)
        xhat = x * rstd
        g = dy * _along(problem.weight, problem)
        dx = rstd * (g - xhat * (g * xhat).mean(problem.axis, keepdims=True))
        dweight = (dy * xhat).sum(_other_axes(problem))
        return (
            dx.astype(problem.x.dtype, copy=False),
            dweight.astype(problem.weight.dtype, copy=False),
        )


def _rms_rstd(x: Array, problem: Problem) -> Array:
    with np.errstate(all="ignore"):
        mean_square = (x * x).mean(problem.axis, keepdims=True)
        rstd: Array = 1 / np.sqrt(mean_square + x.dtype.type(problem.eps))
        return rstd


def _other_axes(problem: Problem) -> tuple[int, ...]:
    axes = problem.x.ndim
    return tuple(each for each in range(axes) if each != problem.axis % axes)


def _widened(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _along(parameter: Array, problem: Problem) -> Array:
    shape = [1] * problem.x.ndim
    shape[problem.axis] = -1
    return _widened(parameter).reshape(shape)
