"""Layer norm and RMS norm as modules, subclasses of PyTorch's own."""

from collections.abc import Sequence
from typing import Self, overload

import torch
from torch import Tensor

from layernorm import spec
from layernorm.torch.arguments import sizes_of
from layernorm.torch.functional import layer_norm, rms_norm

_OWN_ATTRIBUTES = ["axis", "zero_centered_weight"]  # TorchScript gets neither


class LayerNorm(torch.nn.LayerNorm):
    """Layer norm: a `torch.nn.LayerNorm`, with its parameters, defaults and saved state.

    y = (x - mean) / sqrt(var + eps) * weight + bias, as in `layer_norm`.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as in torch.nn.LayerNorm.
        axis: the normalized axes, if they are not the last: axis=1 for channels first.
        zero_centered_weight: multiply by 1 + weight, which is then initially zero.
    """

    axis: spec.Axis | None = None
    zero_centered_weight = False
    __jit_ignored_attributes__ = _OWN_ATTRIBUTES

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
        zero_centered_weight: bool = False,
    ) -> None:
        shape = sizes_of(normalized_shape)
        super().__init__(shape, eps, elementwise_affine, bias, device, dtype)
        self.axis = axis
        self.zero_centered_weight = zero_centered_weight
        _zero_weight_if_centered_there(self)

    def reset_parameters(self) -> None:
        """Set the weight to ones, or to zeros if it is zero-centered; the bias to zeros."""
        super().reset_parameters()
        _zero_weight_if_centered_there(self)

    @overload
    def forward(
        self,
        input: Tensor,
        residual: None = None,
        gate: Tensor | None = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        input: Tensor,
        residual: Tensor,
        gate: Tensor | None = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        gate: Tensor | None = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Tensor:
        """Return y, or with a residual (y, total), as `layer_norm` does; so with a gate."""
        if torch.jit.is_scripting():
            assert residual is None, "a TorchScript knows no residual: pass x + residual"
            assert gate is None, "a TorchScript knows no gate: multiply y by the activated gate"
            return torch.nn.functional.layer_norm(
                input, self.normalized_shape, self.weight, self.bias, self.eps
            )
        return layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            residual=residual,
            gate=gate,
            activation=activation,
            norm_before_gate=norm_before_gate,
            axis=self.axis,
            zero_centered_weight=self.zero_centered_weight,
        )

    def extra_repr(self) -> str:
        """Describe the arguments."""
        return super().extra_repr() + _own_arguments(self)

    def __prepare_scriptable__(self) -> Self:
        _check_scriptable(self)
        return self


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
    __jit_ignored_attributes__ = _OWN_ATTRIBUTES

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
        super().__init__(sizes_of(normalized_shape), eps, elementwise_affine, device, dtype)
        self.axis = axis
        self.zero_centered_weight = zero_centered_weight
        _zero_weight_if_centered_there(self)

    def reset_parameters(self) -> None:
        """Set the weight to ones, or to zeros if it is zero-centered."""
        super().reset_parameters()
        _zero_weight_if_centered_there(self)

    @overload
    def forward(
        self,
        x: Tensor,
        residual: None = None,
        gate: Tensor | None = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        gate: Tensor | None = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> tuple[Tensor, Tensor]: ...
    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        gate: Tensor | None = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Tensor:
        """Return y, or with a residual (y, total), as `rms_norm` does; so with a gate."""
        if torch.jit.is_scripting():
            assert residual is None, "a TorchScript knows no residual: pass x + residual"
            assert gate is None, "a TorchScript knows no gate: multiply y by the activated gate"
            return torch.nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return rms_norm(
            x,
            self.normalized_shape,
            self.weight,
            self.eps,
            residual=residual,
            gate=gate,
            activation=activation,
            norm_before_gate=norm_before_gate,
            axis=self.axis,
            zero_centered_weight=self.zero_centered_weight,
        )

    def extra_repr(self) -> str:
        """Describe the arguments."""
        return super().extra_repr() + _own_arguments(self)

    def __prepare_scriptable__(self) -> Self:
        _check_scriptable(self)
        return self


def _zero_weight_if_centered_there(layer: LayerNorm | RMSNorm) -> None:
    if layer.elementwise_affine and layer.zero_centered_weight:
        torch.nn.init.zeros_(layer.weight)


def _check_scriptable(layer: LayerNorm | RMSNorm) -> None:
    """Check that PyTorch's own module, whose script this is, computes the same."""
    if layer.axis is not None or layer.zero_centered_weight:
        raise RuntimeError(
            f"{layer} cannot be a TorchScript, which knows neither axis nor zero_centered_weight: "
            "use torch.jit.trace or torch.export"
        )


def _own_arguments(layer: LayerNorm | RMSNorm) -> str:
    axis = "" if layer.axis is None else f", axis={layer.axis}"
    return axis + (", zero_centered_weight=True" if layer.zero_centered_weight else "")
