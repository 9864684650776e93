"""Judges a result before it is timed, by its errors against the definition in float64.

The errors are those of `layernorm.accuracy`. Of a large problem, some rows of y and dx are judged,
and some columns of dweight and dbias, each of which is a sum over every row.
"""

from functools import cached_property

import numpy as np

from layernorm import accuracy, reference
from layernorm.cli.problem import Array, Problem

JUDGED_ROWS = 256
JUDGED_COLS = 32
BLOCK_ROWS = 4096


class Judge:
    """Judges results of one problem."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._x, self._dy = self._by_rows(problem.x), self._by_rows(problem.dy)
        rows, cols = self._x.shape
        self._rows = _spread(rows, JUDGED_ROWS)
        self._cols = _spread(cols, JUDGED_COLS)

    def errors(self, arrays: tuple[Array, ...]) -> dict[str, float]:
        """Return the worst error of each array of (y,), or of dx and those of the parameters."""
        problem, rows = self._problem, self._rows
        x, eps, kind = self._x[rows], problem.eps, problem.kind
        first = self._by_rows(arrays[0])[rows]
        if len(arrays) == 1:
            return {"y": accuracy.y_error(first, x, *problem.parameters, eps=eps, kind=kind)}
        dy, weight = self._dy[rows], problem.weight
        errors = {"dx": accuracy.dx_error(first, dy, x, weight, eps=eps, kind=kind)}
        terms: dict[str, tuple[Array, ...]] = {"dweight": self._dweight_terms}
        if kind == "layer_norm":
            terms["dbias"] = (self._dy_of_cols,)
        for (name, summed), gradient in zip(terms.items(), arrays[1:], strict=True):
            errors[name] = accuracy.parameter_error(gradient[self._cols], *summed)
        return errors

    def within_bounds(self, errors: dict[str, float]) -> bool:
        """Whether the contract allows these errors."""
        bounds = accuracy.BOUNDS[self._problem.type_name]
        limit = {"y": bounds.y, "dx": bounds.dx}
        return all(error <= limit.get(part, bounds.parameter) for part, error in errors.items())

    @cached_property
    def _dy_of_cols(self) -> Array:
        return self._dy[:, self._cols].astype(np.float64)

    @cached_property
    def _dweight_terms(self) -> tuple[Array, Array]:
        """The terms of each judged column, and the scales of their errors."""
        xhat = np.empty_like(self._dy_of_cols)
        centered = self._problem.kind == "layer_norm"
        for start in range(0, len(xhat), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            mean, _, rstd = reference.statistics(
                self._x[block], -1, self._problem.eps, centered=centered
            )
            x = self._x[block][:, self._cols].astype(np.float64)
            xhat[block] = (x - mean) * rstd
        dy = self._dy_of_cols
        return dy * xhat, np.abs(dy) * np.maximum(1, np.abs(xhat))

    def _by_rows(self, array: Array) -> Array:
        return np.moveaxis(array, self._problem.axis, -1).reshape(-1, self._problem.cols)


def _spread(size: int, count: int) -> Array:
    """Return at most `count` indices from 0 to size - 1, the first and the last among them."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.intp))
