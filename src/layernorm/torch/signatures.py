"""Operators with PyTorch's signatures, made of functions that take a `Definition`.

The compiled module has the schemas (native/bindings/torch/operators.cc).
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from layernorm.torch.arguments import Axes, Definition, normalize_axes


class Forward(Protocol):
    """A forward, with a residual, a gate or neither."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        definition: Definition,
        *,
        addend: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return y and the statistics; with an addend y, total = x + addend and the statistics."""
        ...


class Backward(Protocol):
    """A backward, with a residual, a gate or neither."""

    def __call__(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        definition: Definition,
        need: Sequence[bool],
        statistics: Sequence[Tensor],
        *,
        dtotal: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return dx plus dtotal, dweight, (layer norm) dbias, and with a gate dgate.

        The statistics are mean, rstd and residual; rstd alone for RMS norm.
        """
        ...


def gated_definition(
    axes: Axes,
    centered: bool,
    eps: float,
    zero_centered_weight: bool,
    silu: bool,
    norm_before_gate: bool,
) -> Definition:
    """Return the definition of a call with a gate, whose operator ends with these options."""
    return Definition(axes, eps, centered, zero_centered_weight, silu, norm_before_gate)


def forward_operators(forward: Forward) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """Return the operators of a forward, by name."""

    def layer_norm(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool = False,
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, x.dim()), eps, True, zero_centered_weight)
        return forward(x, weight, bias, definition)

    def rms_norm(
        x: Tensor,
        weight: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool = False,
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, x.dim()), eps, False, zero_centered_weight)
        return forward(x, weight, None, definition)

    def add_layer_norm(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool = False,
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, x.dim()), eps, True, zero_centered_weight)
        return forward(x, weight, bias, definition, addend=residual)

    def add_rms_norm(
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool = False,
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, x.dim()), eps, False, zero_centered_weight)
        return forward(x, weight, None, definition, addend=residual)

    def gated_layer_norm(
        x: Tensor,
        gate: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axis: Sequence[int],
        *options: Any,
    ) -> tuple[Tensor, ...]:
        definition = gated_definition(normalize_axes(axis, x.dim()), True, *options)
        return forward(x, weight, bias, definition, gate=gate)

    def gated_rms_norm(
        x: Tensor, gate: Tensor, weight: Tensor | None, axis: Sequence[int], *options: Any
    ) -> tuple[Tensor, ...]:
        definition = gated_definition(normalize_axes(axis, x.dim()), False, *options)
        return forward(x, weight, None, definition, gate=gate)

    every = (
        *(layer_norm, rms_norm, add_layer_norm, add_rms_norm),
        *(gated_layer_norm, gated_rms_norm),
    )
    return {each.__name__: each for each in every}


def backward_operators(backward: Backward) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """Return the operators of a backward, by name."""

    def layer_norm_backward(
        dy: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool,
        need: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, x.dim()), eps, True, zero_centered_weight)
        return backward(dy, x, weight, bias, definition, need, (mean, rstd, residual))

    def rms_norm_backward(
        dy: Tensor,
        x: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool,
        need: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, x.dim()), eps, False, zero_centered_weight)
        return backward(dy, x, weight, None, definition, need, (rstd,))

    def add_layer_norm_backward(
        dy: Tensor,
        dtotal: Tensor,
        total: Tensor,
        mean: Tensor,
        rstd: Tensor,
        mean_residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool,
        need: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, total.dim()), eps, True, zero_centered_weight)
        statistics = (mean, rstd, mean_residual)
        return backward(dy, total, weight, bias, definition, need, statistics, dtotal=dtotal)

    def add_rms_norm_backward(
        dy: Tensor,
        dtotal: Tensor,
        total: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        axis: Sequence[int],
        eps: float,
        zero_centered_weight: bool,
        need: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        definition = Definition(normalize_axes(axis, total.dim()), eps, False, zero_centered_weight)
        return backward(dy, total, weight, None, definition, need, (rstd,), dtotal=dtotal)

    def gated_layer_norm_backward(
        dy: Tensor,
        x: Tensor,
        gate: Tensor,
        mean: Tensor,
        rstd: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        axis: Sequence[int],
        *options: Any,
    ) -> tuple[Tensor, ...]:
        *of_call, need = options
        definition = gated_definition(normalize_axes(axis, x.dim()), True, *of_call)
        statistics = (mean, rstd, residual)
        return backward(dy, x, weight, bias, definition, need, statistics, gate=gate)

    def gated_rms_norm_backward(
        dy: Tensor,
        x: Tensor,
        gate: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        axis: Sequence[int],
        *options: Any,
    ) -> tuple[Tensor, ...]:
        *of_call, need = options
        definition = gated_definition(normalize_axes(axis, x.dim()), False, *of_call)
        return backward(dy, x, weight, None, definition, need, (rstd,), gate=gate)

    every = (
        *(layer_norm_backward, rms_norm_backward),
        *(add_layer_norm_backward, add_rms_norm_backward),
        *(gated_layer_norm_backward, gated_rms_norm_backward),
    )
    return {each.__name__: each for each in every}
