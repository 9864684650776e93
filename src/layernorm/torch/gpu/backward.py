"""The backward on a GPU: chooses the kernels, allocates and launches."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from layernorm import spec
from layernorm.torch import arguments, operators
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import long_rows, views
from layernorm.torch.gpu.axis_order import order_of
from layernorm.torch.gpu.gates import Gate
from layernorm.torch.gpu.launch import launch, multiprocessors
from layernorm.torch.gpu.views import View, strides_of, tensor_of
from layernorm.triton import launch_config
from layernorm.triton.backward import backward as backward_kernel
from layernorm.triton.columns import column_sums
from layernorm.triton.sums import add_programs


class Backward:
    """One backward call, whose launches share much state."""

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
        dtotal: Tensor | None = None,
        gate: Tensor | None = None,
        bias: Tensor | None = None,
        parameter_shape: Sequence[int] | None = None,
        knows_eps: bool = True,
        contiguous: bool = False,
    ) -> None:
        """Take checked arguments; x's device must be the current one.

        Args:
            need: of dx, dweight and dbias, and with a gate of dgate, which then comes last.
            statistics: mean, rstd, residual. RMS norm has no mean and residual, and a residual that
                was not saved is None.
            dtotal: added to dx.
            gate: as in the forward; not beside dtotal. bias: of a norm whose y a gate multiplies.
            parameter_shape: that of weight, dweight and dbias: the normalized shape, or one with
                all axes of x. None: weight's, or the normalized shape if that is None.
            knows_eps: recompute the statistics of rows whose rstd is near the limits of its type,
                and correct a dx that is small by cancellation. Without eps, neither is possible.
            contiguous: make dx contiguous whatever x is.
        """
        *need, self.need_dgate = need if gate is not None else (*need, False)
        self.need_dx, self.need_dweight, self.need_dbias = (*need, False)[:3]
        self.need_sums = self.need_dweight or self.need_dbias
        self.x, self.axes, self.definition = x, definition.axes, definition
        self.parameter_type = parameter_type
        self.eps = definition.eps if knows_eps else None
        self.contiguous = contiguous
        self.has_gate = gate is not None
        if parameter_shape is None and weight is not None:
            parameter_shape = weight.shape
        self.parameter_shape = parameter_shape or spec.normalized_shape(x.shape, self.axes)
        self.order = order_of(x, self.axes, self.parameter_shape)
        if x.numel() == 0:
            return
        itemsize, strided = x.element_size(), self.order.is_strided
        self.tile = launch_config.row_tile(self.cols, itemsize, strided=strided, backward=True)
        vector = not strided and launch_config.is_vector(self.cols, itemsize)
        self.vector = vector
        self.x_view = views.to_read(x, self.order, vector=vector)
        self.dy_view = views.to_read(dy, self.order, vector=vector)
        self.dtotal_view = None
        if dtotal is not None and self.need_dx:
            self.dtotal_view = views.to_read(dtotal, self.order, vector=vector)
        self.gate = Gate.of(gate, definition, self.order, vector=vector)
        self.weight, self.bias = (
            views.flat_parameter(each, x, self.axes, self.order, vector=vector)
            for each in (weight, bias if self.gate.of_y else None)
        )
        self.mean, self.rstd, self.residual = (
            views.flat_statistic(each, self.order) for each in statistics
        )

    @property
    def cols(self) -> int:
        """The number of elements of a row."""
        return self.order.layout.cols

    def run(self) -> tuple[Tensor | None, ...]:
        """Return dx, dweight and dbias, and with a gate dgate, None where not needed."""
        x = self.x
        dx = dgate = None
        if self.need_dx:
            dx = x.new_empty(x.shape) if self.contiguous else operators.empty_as(x)
        if self.need_dgate:
            dgate = operators.empty_as(x)
        empty = x.new_zeros if x.numel() == 0 else x.new_empty
        dtype, size = self.parameter_type, math.prod(self.parameter_shape)
        self.dweight = empty(size, dtype=dtype) if self.need_dweight else None
        self.dbias = empty(size, dtype=dtype) if self.need_dbias else None
        if x.numel() > 0 and (self.need_dx or self.need_sums or self.need_dgate):
            self._launch(dx, dgate)
        gradients = dx, self._shaped(self.dweight), self._shaped(self.dbias)
        return (*gradients, dgate) if self.has_gate else gradients

    def _shaped(self, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        return views.shaped_parameter(gradient, self.parameter_shape, self.x, self.axes, self.order)

    def _launch(self, dx: Tensor | None, dgate: Tensor | None) -> None:
        order = self.order
        dx_view, dgate_view = (
            None if each is None else views.to_write(each, order, vector=self.vector)
            for each in (dx, dgate)
        )
        normalizer = self._empty_normalizer()
        if self.tile is None:
            long_rows.backward(
                *(self.dy_view, self.x_view, (self.weight, self.bias), order, self.definition),
                self.gate,
                eps=self.eps,
                statistics=(self.mean, self.rstd, self.residual),
                dx=dx_view,
                dgate=dgate_view,
                dtotal=self.dtotal_view,
                normalizer=normalizer,
            )
        else:
            self._launch_rows(dx_view, dgate_view, normalizer, self.tile)
        if normalizer is not None and self.need_sums:
            self._launch_columns(normalizer)
        for view, given in ((dx_view, dx), (dgate_view, dgate)):
            if view is not None and given is not None:
                views.copy_back(view, given, order)

    def _empty_normalizer(self) -> Tensor | None:
        """Allocate (4, rows) where dweight and dbias take a kernel of their own."""
        if self.tile is not None and (self.tile.has_sums or not self.need_sums):
            return None
        return self.x.new_empty((4, self.order.rows), dtype=arguments.compute_type(self.x.dtype))

    def _sums(self, programs: int) -> list[Tensor | None]:
        """Return what the programs write their sums to: with one to a member, the gradients."""
        if self._write_gradients(programs):
            return [self.dweight, self.dbias]
        shape = self.order.members * programs, self.cols
        return [
            self.x.new_empty(shape, dtype=torch.float64) if needed else None
            for needed in (self.need_dweight, self.need_dbias)
        ]

    def _write_gradients(self, programs: int) -> bool:
        return self.order.members > 1 and programs == 1

    def _launch_rows(
        self,
        dx: View | None,
        dgate: View | None,
        normalizer: Tensor | None,
        tile: launch_config.Tile,
    ) -> None:
        x, dy, dtotal, order = self.x_view, self.dy_view, self.dtotal_view, self.order
        gate = self.gate
        tiles = programs = order.tiles_of_member(tile.rows)
        sums: list[Tensor | None] = [None, None]
        if self.need_sums and tile.has_sums:
            programs = launch_config.programs_for_sums(
                tiles, multiprocessors(x.tensor.device), tile
            )
            sums = self._sums(programs)
        launch(
            backward_kernel,
            order.members * programs,
            (
                *(x.tensor, dy.tensor, self.weight, self.mean, self.rstd, self.residual),
                *(tensor_of(dx), *sums, normalizer, tensor_of(dtotal)),
                *(self.bias, gate.tensor, tensor_of(dgate)),
                *(*order.index_arguments, tiles, programs),
                *(*x.strides, *dy.strides, *strides_of(dx), *strides_of(dtotal)),
                *(*gate.strides, *strides_of(dgate)),
            ),
            tile.warps,
            COLS=self.cols,
            EPS=self.eps,
            CENTERED=self.definition.centered,
            HAS_WEIGHT=self.weight is not None,
            ZERO_CENTERED=self.definition.zero_centered_weight,
            HAS_BIAS=self.bias is not None,
            HAS_RESIDUAL=self.residual is not None,
            NEED_DX=dx is not None,
            NEED_DWEIGHT=sums[0] is not None,
            NEED_DBIAS=sums[1] is not None,
            NEED_DGATE=dgate is not None,
            DTOTAL=dtotal is not None,
            **gate.constants,
            STORE_NORMALIZER=normalizer is not None,
            STRIDED=order.is_strided,
            OUTER_AXES=order.outer_axes,
            VECTOR=tile.vector,
            ROWS=tile.rows,
            SUM_ROWS=tile.sum_rows,
            HIGH=tile.high,
            LOW=tile.low,
            GROUP_X=x.tensor.element_size() == 2 and gate.of_x is None,
        )
        self._add_programs(sums, programs)

    def _launch_columns(self, normalizer: Tensor) -> None:
        x, dy, gate, order = self.x_view, self.dy_view, self.gate, self.order
        strided = order.is_strided
        tile = launch_config.column_tile(self.cols, x.tensor.element_size(), strided=strided)
        tiles = order.tiles_of_member(tile.rows)
        blocks = -(-self.cols // (tile.high * tile.low))
        splits = launch_config.splits_of_rows(tiles, blocks, multiprocessors(x.tensor.device))
        sums = self._sums(splits)
        launch(
            column_sums,
            order.members * splits * blocks,
            (
                *(x.tensor, dy.tensor, normalizer, *sums, gate.tensor),
                *(*order.index_arguments, tiles, splits, *x.strides, *dy.strides, *gate.strides),
            ),
            tile.warps,
            COLS=self.cols,
            CENTERED=self.definition.centered,
            **gate.constants,
            NEED_DWEIGHT=self.need_dweight,
            NEED_DBIAS=self.need_dbias,
            STRIDED=strided,
            OUTER_AXES=order.outer_axes,
            VECTOR=tile.vector,
            ROWS=tile.rows,
            HIGH=tile.high,
            LOW=tile.low,
        )
        self._add_programs(sums, splits)

    def _add_programs(self, sums: list[Tensor | None], programs: int) -> None:
        if (sums[0] is None and sums[1] is None) or self._write_gradients(programs):
            return
        tile = launch_config.PARTIAL_SUMS
        launch(
            add_programs,
            self.order.members * -(-self.cols // tile.block),
            (*sums, self.dweight, self.dbias, programs),
            tile.warps,
            COLS=self.cols,
            NEED_DWEIGHT=sums[0] is not None,
            NEED_DBIAS=sums[1] is not None,
            ROWS=tile.rows,
            BLOCK=tile.block,
        )
