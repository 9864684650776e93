"""Layer norm and RMS norm as modules, subclasses of PyTorch's own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layernorm import spec
from layernorm.torch.functional import layer_norm, rms_norm


class LayerNorm(torch.nn.LayerNorm):
    """Layer norm: a `torch.nn.LayerNorm`, with its parameters, defaults and saved state.

    y = (x - mean) / sqrt(var + eps) * weight + bias, as in `layer_norm`.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as in torch.nn.LayerNorm.
        axis: the normalized axes, if they are not the last: axis=1 for channels first.
    """

    axis: spec.Axis | None = None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        axis: spec.Axis | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.axis = axis

    def forward(self, input: Tensor) -> Tensor:
        """Return y."""
        return layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, axis=self.axis
        )

    def extra_repr(self) -> str:
        """Describe the arguments."""
        return super().extra_repr() + _axis_repr(self.axis)


class RMSNorm(torch.nn.RMSNorm):
    """RMS norm: a `torch.nn.RMSNorm`, with its parameter, defaults and saved state.

    y = x / sqrt(mean(x**2) + eps) * weight, as in `rms_norm`.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as in torch.nn.RMSNorm.
        axis: the normalized axes, if they are not the last: axis=1 for channels first.
        zero_centered_weight: multiply by 1 + weight, which is then initially zero.
    """

    axis: spec.Axis | None = None
    zero_centered_weight = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        axis: spec.Axis | None = None,
        zero_centered_weight: bool = False,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.axis = axis
        self.zero_centered_weight = zero_centered_weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones, or to zeros if it is zero-centered."""
        if self.elementwise_affine and self.zero_centered_weight:
            torch.nn.init.zeros_(self.weight)
        else:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Return y."""
        return rms_norm(
            x,
            self.normalized_shape,
            self.weight,
            self.eps,
            axis=self.axis,
            zero_centered_weight=self.zero_centered_weight,
        )

    def extra_repr(self) -> str:
        """Describe the arguments."""
        zero_centered = ", zero_centered_weight=True" if self.zero_centered_weight else ""
        return super().extra_repr() + _axis_repr(self.axis) + zero_centered


def _axis_repr(axis: spec.Axis | None) -> str:
    return "" if axis is None else f", axis={axis}"
