"""Rows too wide for one program, forward and backward: some of them through all steps at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch import operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu_arrays import Order, Walked
from layernorm.torch.gpu_launch import launch
from layernorm.triton import plan
from layernorm.triton.chunks import wide_squares, wide_sums
from layernorm.triton.wide_backward import wide_dx, wide_gradient_sums, wide_normalizer
from layernorm.triton.wide_forward import wide_forward


class Partials(NamedTuple):
    """What the chunks of each row leave for the next step: (rows, chunks), float64 but for one."""

    largest: Tensor
    sum: Tensor
    rest: Tensor
    squares: Tensor


class Rows(NamedTuple):
    """Some rows of x that go through all steps before the next begin."""

    x: Tensor  # (rows, cols)
    partials: Partials
    chunks: plan.Chunks
    definition: Definition

    @property
    def programs(self) -> int:
        """One for each chunk."""
        return len(self.x) * self.chunks.pieces

    @property
    def tile(self) -> dict[str, int]:
        """The constants of a kernel that say which chunk a program has."""
        chunks = self.chunks
        return {
            "VECTOR": chunks.vector,
            "CHUNKS": chunks.pieces,
            "HIGH": chunks.high,
            "LOW": chunks.low,
        }

    def squares_of(self, mean: Tensor, rstd: Tensor, *, given: bool, only: bool) -> None:
        """Leave the sums of x - mean and of its square, as `wide_squares` does."""
        launch(
            wide_squares,
            self.programs,
            (self.x, mean, rstd, *self.partials, self.x.stride(0)),
            self.chunks.warps,
            COLS=self.x.shape[1],
            EPS=self.definition.eps,
            CENTERED=self.definition.centered,
            GIVEN_MEAN=given,
            ONLY_EXTRAORDINARY=only,
            **self.tile,
            MOST=self.chunks.most,
        )

    def measure(self, rstd: Tensor | None = None) -> None:
        """Leave the sums that the rows' statistics are made of.

        `rstd`: only those of rows whose saved rstd the backward cannot use.
        """
        saved = self.partials.largest if rstd is None else rstd
        launch(
            wide_sums,
            self.programs,
            (self.x, saved, self.partials.largest, self.partials.sum, self.x.stride(0)),
            self.chunks.warps,
            COLS=self.x.shape[1],
            CENTERED=self.definition.centered,
            ONLY_EXTRAORDINARY=rstd is not None,
            **self.tile,
        )
        self.squares_of(saved, saved, given=False, only=rstd is not None)


def _parts(
    x: Walked, order: Order, definition: Definition, itemsize: int
) -> Iterator[tuple[slice, Rows]]:
    """Cut the rows into parts; `itemsize`: bytes of an element in all that a step reads."""
    rows, cols = order.rows, order.layout.cols
    chunks = plan.chunks_of(cols, x.tensor.element_size())
    together = min(rows, plan.rows_together(cols, itemsize))
    new = x.tensor.new_empty
    largest = new((together, chunks.pieces), dtype=operators.compute_type(x.tensor))
    sums = new((3, together, chunks.pieces), dtype=torch.float64)
    seen = _rows_of(x, order)
    for first in range(0, rows, together):
        part = slice(first, min(rows, first + together))
        yield part, Rows(seen[part], Partials(largest, *sums.unbind(0)), chunks, definition)


def _rows_of(walked: Walked, order: Order) -> Tensor:
    return walked.tensor.as_strided((order.rows, order.layout.cols), (walked.outer_stride, 1))


def forward(
    x: Walked,
    y: Tensor,
    parameters: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    order: Order,
    definition: Definition,
) -> None:
    """Write y, contiguous, and the statistics that are not None."""
    save = statistics[1] is not None
    y_rows = y.view(order.rows, order.layout.cols)
    for part, rows in _parts(x, order, definition, y.element_size()):
        rows.measure()
        saved = (each[part] if each is not None else rows.partials.largest for each in statistics)
        launch(
            wide_forward,
            rows.programs,
            (
                rows.x,
                *(rows.x if each is None else each for each in parameters),
                *(y_rows[part], *saved, *rows.partials, rows.x.stride(0)),
            ),
            rows.chunks.warps,
            COLS=order.layout.cols,
            EPS=definition.eps,
            CENTERED=definition.centered,
            HAS_WEIGHT=parameters[0] is not None,
            HAS_BIAS=parameters[1] is not None,
            ZERO_CENTERED=definition.zero_centered_weight,
            SAVE=save,
            **rows.tile,
            MOST=rows.chunks.most,
        )


def backward(
    dy: Walked,
    x: Walked,
    weight: Tensor | None,
    order: Order,
    definition: Definition,
    *,
    eps: float | None,
    statistics: Sequence[Tensor | None],
    dx: Walked | None,
    normalizer: Tensor | None,
) -> None:
    """Write dx, contiguous, and the normalizer (4, rows) that dweight is made with.

    Args:
        eps: None where rows may not be measured again.
        statistics: mean, rstd and residual, flat; None for those there are not.
        dx, normalizer: None where not needed.
    """
    if normalizer is None:
        normalizer = x.tensor.new_empty((4, order.rows), dtype=operators.compute_type(x.tensor))
    dy_rows = _rows_of(dy, order)
    dx_rows = None if dx is None else dx.tensor.view(dy_rows.shape)
    for part, rows in _parts(x, order, definition, 2 * x.tensor.element_size()):
        saved = [None if each is None else each[part] for each in statistics]
        own = normalizer[:, part].contiguous()
        _normalizer(rows, saved, eps, own)
        if dx_rows is not None:
            _dx(rows, dy_rows[part], weight, own, dx_rows[part])
        normalizer[:, part] = own


def _normalizer(
    rows: Rows, statistics: Sequence[Tensor | None], eps: float | None, normalizer: Tensor
) -> None:
    mean, rstd, residual = statistics
    assert rstd is not None
    if mean is not None and residual is None:
        rows.squares_of(mean, rstd, given=True, only=False)
    if eps is not None:
        rows.measure(rstd)
    launch(
        wide_normalizer,
        len(rows.x),
        (
            *(rstd if each is None else each for each in statistics),
            *(normalizer, *rows.partials, len(rows.x)),
        ),
        plan.warps_for_partials(rows.chunks),
        COLS=rows.x.shape[1],
        EPS=eps,
        CENTERED=rows.definition.centered,
        HAS_RESIDUAL=residual is not None,
        CHUNKS=rows.chunks.pieces,
        MOST=rows.chunks.most,
    )


def _dx(rows: Rows, dy: Tensor, weight: Tensor | None, normalizer: Tensor, dx: Tensor) -> None:
    x, chunks = rows.x, rows.chunks
    exponents = x.new_empty((len(x), chunks.pieces), dtype=torch.int32)
    sums = (exponents, rows.partials.rest, rows.partials.squares)
    sizes = (len(x), x.stride(0), dy.stride(0))
    weight_or_any = x if weight is None else weight
    constants = {
        "COLS": x.shape[1],
        "CENTERED": rows.definition.centered,
        "HAS_WEIGHT": weight is not None,
        "ZERO_CENTERED": rows.definition.zero_centered_weight,
        **rows.tile,
    }
    launch(
        wide_gradient_sums,
        rows.programs,
        (x, dy, weight_or_any, normalizer, *sums, *sizes),
        chunks.warps,
        **constants,
    )
    launch(
        wide_dx,
        rows.programs,
        (x, dy, weight_or_any, dx, normalizer, *sums, *sizes),
        chunks.warps,
        **constants,
        MOST=chunks.most,
    )
