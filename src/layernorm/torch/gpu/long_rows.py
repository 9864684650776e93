"""Rows too wide for one program, forward and backward: some of them through all steps at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layernorm.torch import operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu.arrays import Order, Walked
from layernorm.torch.gpu.launch import launch
from layernorm.triton import plan
from layernorm.triton.chunks import wide_squares, wide_sums
from layernorm.triton.wide_backward import wide_dx, wide_gradient_sums, wide_normalizer
from layernorm.triton.wide_forward import wide_forward


class Partials(NamedTuple):
    """What the chunks leave for the next step: (tiles, chunks, rows), float64 but for one."""

    largest: Tensor
    sum: Tensor
    rest: Tensor
    squares: Tensor


class Part(NamedTuple):
    """Some tiles of rows of x that go through all steps before the next begin."""

    first: int
    tiles: int
    x: Walked
    order: Order
    chunks: plan.Chunks
    partials: Partials
    definition: Definition

    @property
    def programs(self) -> int:
        """One for each chunk."""
        return self.tiles * self.chunks.pieces

    @property
    def place(self) -> tuple[int, int, int]:
        """The numbers that tell a kernel which rows these are."""
        return self.first, self.order.rows, self.order.layout.inner

    @property
    def place_in_x(self) -> tuple[int, ...]:
        """The numbers that tell a kernel where in x the rows are."""
        return *self.place, self.x.outer_stride, self.x.col_stride

    @property
    def tile(self) -> dict[str, int]:
        """The constants of a kernel that say which chunk a program has."""
        chunks = self.chunks
        return {
            "STRIDED": self.order.is_strided,
            "VECTOR": chunks.vector,
            "CHUNKS": chunks.pieces,
            "ROWS": chunks.rows,
            "HIGH": chunks.high,
            "LOW": chunks.low,
        }

    def squares_of(self, mean: Tensor, rstd: Tensor, *, given: bool, only: bool) -> None:
        """Leave the sums of x - mean and of its square, as `wide_squares` does."""
        launch(
            wide_squares,
            self.programs,
            (self.x.tensor, mean, rstd, *self.partials, *self.place_in_x),
            self.chunks.warps,
            COLS=self.order.layout.cols,
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
        sums = (self.partials.largest, self.partials.sum)
        launch(
            wide_sums,
            self.programs,
            (self.x.tensor, saved, *sums, *self.place_in_x),
            self.chunks.warps,
            COLS=self.order.layout.cols,
            CENTERED=self.definition.centered,
            ONLY_EXTRAORDINARY=rstd is not None,
            **self.tile,
        )
        self.squares_of(saved, saved, given=False, only=rstd is not None)


def _parts(x: Walked, order: Order, definition: Definition, itemsize: int) -> Iterator[Part]:
    """Cut the rows into parts; `itemsize`: bytes of an element in all that a step reads."""
    cols = order.layout.cols
    chunks = plan.chunks_of(cols, x.tensor.element_size(), strided=order.is_strided)
    tiles = order.tiles_of(chunks.rows)
    together = min(tiles, plan.tiles_together(cols, itemsize, chunks))
    shape = (together, chunks.pieces, chunks.rows)
    largest = x.tensor.new_empty(shape, dtype=operators.compute_type(x.tensor))
    sums = x.tensor.new_empty((3, *shape), dtype=torch.float64)
    partials = Partials(largest, *sums.unbind(0))
    for first in range(0, tiles, together):
        yield Part(first, min(together, tiles - first), x, order, chunks, partials, definition)


def forward(
    x: Walked,
    y: Walked,
    parameters: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    order: Order,
    definition: Definition,
) -> None:
    """Write y, and the statistics that are not None."""
    nothing = x.tensor
    for part in _parts(x, order, definition, x.tensor.element_size()):
        part.measure()
        launch(
            wide_forward,
            part.programs,
            (
                x.tensor,
                *(nothing if each is None else each for each in parameters),
                y.tensor,
                *(part.partials.largest if each is None else each for each in statistics),
                *(*part.partials, *part.place_in_x, y.outer_stride, y.col_stride),
            ),
            part.chunks.warps,
            COLS=order.layout.cols,
            EPS=definition.eps,
            CENTERED=definition.centered,
            HAS_WEIGHT=parameters[0] is not None,
            HAS_BIAS=parameters[1] is not None,
            ZERO_CENTERED=definition.zero_centered_weight,
            SAVE=statistics[1] is not None,
            **part.tile,
            MOST=part.chunks.most,
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
    """Write dx, and the normalizer (4, rows) that dweight is made with.

    Args:
        eps: None where rows may not be measured again.
        statistics: mean, rstd and residual, flat; None for those there are not.
        dx, normalizer: None where not needed.
    """
    if normalizer is None:
        normalizer = x.tensor.new_empty((4, order.rows), dtype=operators.compute_type(x.tensor))
    for part in _parts(x, order, definition, 2 * x.tensor.element_size()):
        _normalizer(part, statistics, eps, normalizer)
        if dx is not None:
            _dx(part, dy, weight, normalizer, dx)


def _normalizer(
    part: Part, statistics: Sequence[Tensor | None], eps: float | None, normalizer: Tensor
) -> None:
    mean, rstd, residual = statistics
    assert rstd is not None
    if mean is not None and residual is None:
        part.squares_of(mean, rstd, given=True, only=False)
    if eps is not None:
        part.measure(rstd)
    launch(
        wide_normalizer,
        part.tiles,
        (
            *(rstd if each is None else each for each in statistics),
            *(normalizer, *part.partials, *part.place),
        ),
        plan.warps_for_partials(part.chunks),
        COLS=part.order.layout.cols,
        EPS=eps,
        CENTERED=part.definition.centered,
        HAS_RESIDUAL=residual is not None,
        STRIDED=part.order.is_strided,
        CHUNKS=part.chunks.pieces,
        ROWS=part.chunks.rows,
        MOST=part.chunks.most,
    )


def _dx(part: Part, dy: Walked, weight: Tensor | None, normalizer: Tensor, dx: Walked) -> None:
    x, partials = part.x.tensor, part.partials
    exponents = torch.empty_like(partials.largest, dtype=torch.int32)
    sums = (exponents, partials.rest, partials.squares)
    places = (*part.place_in_x, dy.outer_stride, dy.col_stride)
    weight_or_any = x if weight is None else weight
    constants = {
        "COLS": part.order.layout.cols,
        "CENTERED": part.definition.centered,
        "HAS_WEIGHT": weight is not None,
        "ZERO_CENTERED": part.definition.zero_centered_weight,
        **part.tile,
    }
    launch(
        wide_gradient_sums,
        part.programs,
        (x, dy.tensor, weight_or_any, normalizer, *sums, *places),
        part.chunks.warps,
        **constants,
    )
    launch(
        wide_dx,
        part.programs,
        (
            *(x, dy.tensor, weight_or_any, dx.tensor, normalizer),
            *(*sums, *places, dx.outer_stride, dx.col_stride),
        ),
        part.chunks.warps,
        **constants,
        MOST=part.chunks.most,
    )
