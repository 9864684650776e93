"""The backward on a GPU: chooses the kernels, allocates, launches. Wide rows: long_rows.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layernorm.torch import operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import arrays, long_rows
from layernorm.torch.gpu.arrays import Walked
from layernorm.torch.gpu.launch import launch, multiprocessors
from layernorm.triton import plan
from layernorm.triton.backward import backward as backward_kernel
from layernorm.triton.columns import column_sums
from layernorm.triton.sums import add_programs


class Backward:
    """One call: what its steps share."""

    def __init__(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        parameter_type: torch.dtype,
        definition: Definition,
        need: Sequence[bool],
        statistics: Sequence[Tensor | None],
        *,
        knows_eps: bool = True,
        contiguous: bool = False,
    ) -> None:
        """Take a checked call; x's device must be the current one.

        Args:
            statistics: mean, rstd, residual; no mean and residual for RMS norm, and no residual
                where it was not saved.
            knows_eps: rows whose rstd is near the ends of its type are measured again; without eps
                their rstd is used as it is.
            contiguous: dx is contiguous whatever x is.
        """
        axis = definition.axis
        self.need_dx, self.need_dweight, self.need_dbias = (*need, False)[:3]
        self.need_sums = self.need_dweight or self.need_dbias
        self.x, self.axis, self.definition = x, axis, definition
        self.parameter_type = parameter_type
        self.eps = definition.eps if knows_eps else None
        self.contiguous = contiguous
        self.order = arrays.order_of(x, axis)
        itemsize = x.element_size()
        tile_of = plan.strided_tile if self.order.is_strided else plan.rows_tile
        self.tile = tile_of(self.cols, itemsize, backward=True)
        self.vector = not self.order.is_strided and plan.is_vector(self.cols, itemsize)
        if x.numel() == 0:
            return
        self.walked = arrays.to_read(x, self.order, vector=self.vector)
        self.dy = arrays.to_read(dy, self.order, vector=self.vector)
        self.weight = arrays.parameter_to_read(weight, x, axis, self.order, vector=self.vector)
        self.mean, self.rstd, self.residual = (
            arrays.statistics_to_read(each, self.order) for each in statistics
        )

    @property
    def cols(self) -> int:
        """How many elements a row has."""
        return self.order.layout.cols

    def run(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return dx, dweight and dbias, None where not needed."""
        x = self.x
        dx = None
        if self.need_dx:
            dx = x.new_empty(x.shape) if self.contiguous else operators.empty_as(x)
        empty = x.new_zeros if x.numel() == 0 else x.new_empty
        flat = {"dtype": self.parameter_type}
        self.dweight = empty(self.cols, **flat) if self.need_dweight else None
        self.dbias = empty(self.cols, **flat) if self.need_dbias else None
        if x.numel() > 0 and (dx is not None or self.need_sums):
            self._launch(dx)
        return dx, self._shaped(self.dweight), self._shaped(self.dbias)

    def _shaped(self, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        return arrays.parameter_gradient(gradient, self.x, self.axis, self.order)

    def _launch(self, dx: Tensor | None) -> None:
        order = self.order
        target = None
        if dx is not None:
            target = arrays.to_write(dx, order, vector=self.vector)
        normalizer = self._empty_normalizer()
        if self.tile is None:
            long_rows.backward(
                *(self.dy, self.walked, self.weight, order, self.definition),
                eps=self.eps,
                statistics=(self.mean, self.rstd, self.residual),
                dx=target,
                normalizer=normalizer,
            )
        else:
            self._tiles(target, normalizer, self.tile)
        if normalizer is not None and self.need_sums:
            self._columns(normalizer)
        if dx is not None and target is not None:
            arrays.flush(target, dx, order)

    def _empty_normalizer(self) -> Tensor | None:
        """Allocate (4, rows) where dweight and dbias take a kernel of their own."""
        if self.tile is not None and (self.tile.has_sums or not self.need_sums):
            return None
        return self.x.new_empty((4, self.order.rows), dtype=operators.compute_type(self.x))

    def _empty_sums(self, programs: int) -> list[Tensor | None]:
        return [
            self.x.new_empty((programs, self.cols), dtype=torch.float64) if needed else None
            for needed in (self.need_dweight, self.need_dbias)
        ]

    def _tiles(self, dx: Walked | None, normalizer: Tensor | None, tile: plan.Tile) -> None:
        x, dy, layout = self.walked, self.dy, self.order.layout
        tiles = programs = self.order.tiles_of(tile.rows)
        sums: list[Tensor | None] = [None, None]
        if self.need_sums and tile.has_sums:
            programs = plan.programs_for_sums(tiles, multiprocessors(x.tensor.device), tile)
            sums = self._empty_sums(programs)
        nothing = x.tensor
        pointers = (
            *(x.tensor, dy.tensor, self.weight, self.mean, self.rstd, self.residual),
            *(None if dx is None else dx.tensor, *sums, normalizer),
        )
        launch(
            backward_kernel,
            programs,
            (
                *(nothing if each is None else each for each in pointers),
                *(self.order.rows, layout.inner, tiles, programs),
                *(x.outer_stride, x.col_stride, dy.outer_stride, dy.col_stride),
                *((0, 0) if dx is None else (dx.outer_stride, dx.col_stride)),
            ),
            tile.warps,
            COLS=layout.cols,
            EPS=self.eps,
            CENTERED=self.definition.centered,
            HAS_WEIGHT=self.weight is not None,
            ZERO_CENTERED=self.definition.zero_centered_weight,
            HAS_RESIDUAL=self.residual is not None,
            NEED_DX=dx is not None,
            NEED_DWEIGHT=sums[0] is not None,
            NEED_DBIAS=sums[1] is not None,
            KEEP_NORMALIZER=normalizer is not None,
            STRIDED=self.order.is_strided,
            VECTOR=tile.vector,
            ROWS=tile.rows,
            KEPT=tile.kept,
            HIGH=tile.high,
            LOW=tile.low,
            GROUP_X=x.tensor.element_size() == 2,
        )
        self._add_up(sums, programs)

    def _columns(self, normalizer: Tensor) -> None:
        x, dy, layout = self.walked, self.dy, self.order.layout
        strided = self.order.is_strided
        tile = plan.columns_tile(layout.cols, x.tensor.element_size(), strided=strided)
        tiles = self.order.tiles_of(tile.rows)
        blocks = -(-layout.cols // (tile.high * tile.low))
        splits = plan.splits_of_rows(tiles, blocks, multiprocessors(x.tensor.device))
        sums = self._empty_sums(splits)
        launch(
            column_sums,
            blocks * splits,
            (
                *(x.tensor, dy.tensor, normalizer),
                *(x.tensor if each is None else each for each in sums),
                *(self.order.rows, layout.inner, tiles, splits),
                *(x.outer_stride, x.col_stride, dy.outer_stride, dy.col_stride),
            ),
            tile.warps,
            COLS=layout.cols,
            CENTERED=self.definition.centered,
            NEED_DWEIGHT=self.need_dweight,
            NEED_DBIAS=self.need_dbias,
            STRIDED=strided,
            VECTOR=tile.vector,
            ROWS=tile.rows,
            HIGH=tile.high,
            LOW=tile.low,
        )
        self._add_up(sums, splits)

    def _add_up(self, sums: list[Tensor | None], programs: int) -> None:
        if sums[0] is None and sums[1] is None:
            return
        tile = plan.sums_tile()
        pointers = (*sums, self.dweight, self.dbias)
        nothing = self.walked.tensor
        launch(
            add_programs,
            -(-self.cols // tile.block),
            (*(nothing if each is None else each for each in pointers), programs),
            tile.warps,
            COLS=self.cols,
            NEED_DWEIGHT=sums[0] is not None,
            NEED_DBIAS=sums[1] is not None,
            CHUNK=tile.chunk,
            BLOCK=tile.block,
        )
