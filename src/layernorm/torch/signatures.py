"""Operators with PyTorch's signatures, made of functions that take a `Definition`.

The compiled module has the schemas (native/bindings/torch/operators.cc).
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from layernorm.torch.arguments import Definition, normalize_axes

# (x, weight, bias, definition) -> y and the statistics.
Forward = Callable[[Tensor, Tensor | None, Tensor | None, Definition], tuple[Tensor, ...]]
# (dy, x, weight, bias, definition, need, statistics) -> dx, dweight and (layer norm) dbias. The
# statistics are mean, rstd and residual; rstd alone for RMS norm.
Backward = Callable[
    [
        Tensor,
        Tensor,
        Tensor | None,
        Tensor | None,
        Definition,
        Sequence[bool],
        Sequence[Tensor],
    ],
    tuple[Tensor, ...],
]


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

    return {each.__name__: each for each in (layer_norm, rms_norm)}


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

    return {each.__name__: each for each in (layer_norm_backward, rms_norm_backward)}
