"""The PyTorch front end with the functions of `layernorm.numpy`: the contract's checks take it.

Arrays become tensors with the same strides where PyTorch has them; gradients come from autograd.
"""

import ml_dtypes
import numpy as np
import torch
from adapter import Adapter, Stats, parameters
from layouts import Array

import layernorm
import layernorm.torch as ours


def to_tensor(array: Array | None) -> torch.Tensor | None:
    """Take the array's memory where PyTorch can: forward strides, aligned, native bytes."""
    if array is None:
        return None
    if any(stride < 0 for stride in array.strides) or not array.flags.aligned:
        array = array.copy()
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable:
        array = array.copy()
    if any(stride % array.itemsize for stride in array.strides):
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: torch.Tensor | None) -> Array | None:
    if tensor is None:
        return None
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


class AsNumpy(Adapter):
    """`public`: call the public functions, which may take the fast path; else the operators."""

    def __init__(self, *, public: bool = True) -> None:
        self.public = public

    def _forward(self, x, weight, bias, *, centered, axis=-1, eps=1e-5, zero_centered_weight=False):
        tensor = to_tensor(x)
        axes = [int(each) for each in np.atleast_1d(axis)]
        call = {"centered": centered, "axis": axes, "eps": eps}
        call["zero_centered_weight"] = zero_centered_weight
        y, *statistics = self._operator(tensor, to_tensor(weight), to_tensor(bias), call)
        if self.public:
            with torch.no_grad():
                y = self._public(tensor, to_tensor(weight), to_tensor(bias), call)
        mean, rstd, residual = statistics if centered else (None, statistics[0], None)
        return to_array(y), Stats(call, bias, *map(to_array, (mean, rstd, residual)))

    def quantized_layer_norm(self, x, weight=None, bias=None, **options):
        return self._quantized(layernorm.quantized_layer_norm, x, weight, bias, **options)

    def quantized_rms_norm(self, x, weight=None, **options):
        return self._quantized(layernorm.quantized_rms_norm, x, weight, **options)

    def _quantized(self, function, *tensors, dtype, scale, **options):
        result = function(*map(to_tensor, tensors), dtype=dtype, scale=scale, **options)
        q, *scales = result if scale is None else (result,)
        of_type = np.int8 if dtype == "int8" else getattr(ml_dtypes, dtype)
        q = q.view(torch.int8).numpy().view(of_type)
        return (q, to_array(scales[0])) if scales else q

    def _operator(self, x, weight, bias, call):
        options = (call["axis"], call["eps"], call["zero_centered_weight"])
        if call["centered"]:
            return torch.ops.layernorm.layer_norm(x, weight, bias, *options)
        return torch.ops.layernorm.rms_norm(x, weight, *options)

    def _public(self, x, weight, bias, call):
        axes = sorted(each % x.dim() for each in call["axis"])
        trailing = axes == list(range(x.dim() - len(axes), x.dim())) and x.is_contiguous()
        shape = [x.shape[each] for each in axes]
        options = {
            "eps": call["eps"],
            "axis": None if trailing else axes,
            "zero_centered_weight": call["zero_centered_weight"],
        }
        if call["centered"]:
            return ours.layer_norm(x, shape, weight, bias, **options)
        return ours.rms_norm(x, shape, weight, **options)

    def _backward(self, dy, x, stats, weight):
        call = stats.call
        given = (x, *parameters(x, weight, stats.bias, **call))
        wanted = [to_tensor(each).requires_grad_() for each in given[: 2 + call["centered"]]]
        arguments = (*wanted, None)[:3]
        y = self._public(*arguments, call) if self.public else self._operator(*arguments, call)[0]
        gradients = torch.autograd.grad(y, wanted, to_tensor(dy))
        return tuple(to_array(each) for each in (*gradients, None)[:3])
