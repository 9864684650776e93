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
        """Return the worst error of each array of (y,) or of (dx, dweight, dbias)."""
        problem, rows = self._problem, self._rows
        x, eps = self._x[rows], problem.eps
        if len(arrays) == 1:
            y = self._by_rows(arrays[0])[rows]
            return {"y": accuracy.y_error(y, x, problem.weight, problem.bias, eps=eps)}
        dx, dweight, dbias = self._by_rows(arrays[0])[rows], *arrays[1:]
        return {
            "dx": accuracy.dx_error(dx, self._dy[rows], x, problem.weight, eps=eps),
            "dweight": accuracy.parameter_error(dweight[self._cols], *self._dweight_terms),
            "dbias": accuracy.parameter_error(dbias[self._cols], self._dy_of_cols),
        }

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
        for start in range(0, len(xhat), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            mean, _, rstd = reference.statistics(self._x[block], -1, self._problem.eps)
            x = self._x[block][:, self._cols].astype(np.float64)
            xhat[block] = (x - mean) * rstd
        dy = self._dy_of_cols
        return dy * xhat, np.abs(dy) * np.maximum(1, np.abs(xhat))

    def _by_rows(self, array: Array) -> Array:
        return np.moveaxis(array, self._problem.axis, -1).reshape(-1, self._problem.cols)


def _spread(size: int, count: int) -> Array:
    """Return at most `count` indices from 0 to size - 1, the first and the last among them."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.intp))
