"""The GPU kernels behind the functions of `layernorm.numpy`, for the checks of the contract.

They run on a GPU if there is one, else on the CPU: in Triton's interpreter, or emulated.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from layouts import Array, axes_of
from triton_interpreter import EMULATED, INTERPRETED, patch_interpreter

from layernorm.torch.arguments import Definition, compute_type
from layernorm.torch.gpu import backward as gpu_backward
from layernorm.torch.gpu import forward as gpu_forward
from layernorm.torch.gpu import quantized as gpu_quantized

if EMULATED:
    from ptx.launches import emulate_launches

    emulate_launches()
elif INTERPRETED:
    patch_interpreter()

DEVICE = "cpu" if INTERPRETED else "cuda"


def to_tensor(array: Array | None) -> torch.Tensor | None:
    """Copy the array, with its strides where a tensor can have them."""
    if array is None:
        return None
    array = np.asarray(array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    steps = [stride // array.itemsize for stride in array.strides]
    span = 1 + sum((n - 1) * step for n, step in zip(array.shape, steps, strict=True) if n)
    usual = all(step >= 0 for step in steps) and all(s % array.itemsize == 0 for s in array.strides)
    bits = np.dtype(f"i{array.itemsize}")
    if array.size and usual and array.flags.aligned and 0 not in steps:
        # the same address modulo 64, so that alignment is tested
        offset = array.ctypes.data % 64 // array.itemsize
        memory = torch.empty(span + offset, dtype=_torch_type(bits), device=DEVICE)
        tensor = memory.as_strided(array.shape, steps, offset)
    else:
        tensor = torch.empty(array.shape, dtype=_torch_type(bits), device=DEVICE)
    copy = np.array(array, order="C").view(bits).reshape(array.shape)
    tensor.copy_(torch.from_numpy(copy))
    return tensor.view(_torch_type(array.dtype))


def _torch_type(dtype: np.dtype) -> torch.dtype:
    return getattr(torch, dtype.name)


def to_array(tensor: torch.Tensor | None) -> Array | None:
    if tensor is None:
        return None
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _spread(parameter: Array | None, x: Array, axes: tuple[int, ...]) -> Array | None:
    """Reshape a parameter as the operators take it: normalized, or with all axes of x."""
    if parameter is None or parameter.shape == tuple(x.shape[axis] for axis in axes):
        return parameter
    return parameter.reshape((1,) * (x.ndim - parameter.ndim) + parameter.shape)


@dataclass
class Stats:
    mean: Array | None
    rstd: Array
    residual: Array | None
    axis: tuple[int, ...]
    eps: float
    definition: Definition
    parameter_type: torch.dtype
    parameter_shape: tuple[int, ...] | None  # None: there was no parameter
    bias: torch.Tensor | None


class Kernels:
    """Our kernels.

    Weight and bias have the same shape: the normalized one, or any that broadcasts against x's.

    Args:
        residual: pass the saved residual to the backward, which else recomputes it.
        parameter_gradients: compute dweight and dbias.
    """

    def __init__(self, *, residual: bool = True, parameter_gradients: bool = True) -> None:
        self.residual = residual
        self.parameter_gradients = parameter_gradients

    def layer_norm_forward(self, x: Array, weight=None, bias=None, **options: Any):
        return self._forward(x, weight, bias, centered=True, **options)

    def rms_norm_forward(self, x: Array, weight=None, **options: Any):
        return self._forward(x, weight, None, centered=False, **options)

    def layer_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **options: Any):
        return self._backward(dy, x, stats, weight, **options)

    def rms_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **options: Any):
        dx, dweight, _, *dgate = self._backward(dy, x, stats, weight, **options)
        return dx, dweight, *dgate

    def layer_norm(self, x: Array, weight=None, bias=None, **options: Any):
        return self.layer_norm_forward(x, weight, bias, **options)[0]

    def rms_norm(self, x: Array, weight=None, **options: Any):
        return self.rms_norm_forward(x, weight, **options)[0]

    def quantized_layer_norm(self, x: Array, weight=None, bias=None, **options: Any):
        return self._quantized(x, weight, bias, centered=True, **options)

    def quantized_rms_norm(self, x: Array, weight=None, **options: Any):
        return self._quantized(x, weight, None, centered=False, **options)

    def _quantized(
        self,
        x,
        weight,
        bias,
        *,
        centered,
        dtype="int8",
        scale=None,
        axis=-1,
        eps=1e-5,
        zero_centered_weight=False,
    ):
        axes = axes_of(axis, x.ndim)
        negative = tuple(each - x.ndim for each in axes)
        definition = Definition(negative, eps, centered, zero_centered_weight)
        given = [
            to_tensor(each) for each in (x, *(_spread(each, x, axes) for each in (weight, bias)))
        ]
        if scale is not None:
            scale = torch.tensor(scale, dtype=compute_type(given[0].dtype), device=DEVICE)
        q, scales = gpu_quantized.quantized(*given, definition, dtype, scale)
        q = q.cpu().numpy().view(dtype)
        return q if scales is None else (q, to_array(scales))

    def _forward(
        self,
        x,
        weight,
        bias,
        *,
        centered,
        axis=-1,
        eps=1e-5,
        zero_centered_weight=False,
        out=None,
        residual=None,
        gate=None,
        activation="silu",
        norm_before_gate=True,
    ):
        axes = axes_of(axis, x.ndim)
        definition = Definition(
            *(tuple(each - x.ndim for each in axes), eps, centered, zero_centered_weight),
            *(activation == "silu", norm_before_gate),
        )
        shape = next((each.shape for each in (weight, bias) if each is not None), None)
        spread = [_spread(each, x, axes) for each in (weight, bias)]
        given = [to_tensor(each) for each in (x, *spread)]
        added, gating = to_tensor(residual), to_tensor(gate)
        results = gpu_forward.forward(*given, definition, addend=added, gate=gating)
        y, *total, mean, rstd, mean_residual = (to_array(each) for each in results)
        if out is not None:
            out[...] = y
            y = out
        types = [each.dtype for each in given[1:] if each is not None] + [given[0].dtype]
        stats = Stats(mean, rstd, mean_residual, axes, eps, definition, types[0], shape, given[2])
        return y, *total, stats

    def _backward(self, dy, x, stats, weight, **options):
        need = (
            options.get("need_dx", True),
            self.parameter_gradients and options.get("need_dweight", True),
            self.parameter_gradients and options.get("need_dbias", stats.definition.centered),
        )
        gate = to_tensor(options.get("gate"))
        if gate is not None:
            need = (*need, options.get("need_dgate", True))
        residual = stats.residual if self.residual else None
        saved = [to_tensor(each) for each in (stats.mean, stats.rstd, residual)]
        shape = stats.parameter_shape
        empty = None if shape is None else np.empty(shape)
        spread = [_spread(each, x, stats.axis) for each in (weight, empty)]
        call = gpu_backward.Backward(
            *(to_tensor(dy), to_tensor(x), to_tensor(spread[0]), stats.parameter_type),
            *(stats.definition, need, saved),
            dtotal=to_tensor(options.get("dtotal")),
            gate=gate,
            bias=stats.bias,
            parameter_shape=None if shape is None else spread[1].shape,
        )
        dx, *gradients = (to_array(each) for each in call.run())
        of_parameters, dgate = gradients[:2], gradients[2:]
        shaped = (g if g is None or shape is None else g.reshape(shape) for g in of_parameters)
        return dx, *shaped, *dgate
