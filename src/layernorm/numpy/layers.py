"""Layers with parameters and a hand-written backward, for training in plain NumPy."""

from collections.abc import Iterator, Mapping
from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt

from layernorm import spec
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array
from layernorm.numpy.functional import (
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from layernorm.numpy.statistics import Stats


class Parameter:
    """An array that is learned, `data`, and the gradient of the loss with respect to it, `grad`.

    An optimizer changes `data` in place. `grad` is None until a backward, and adds up from then on.
    """

    __slots__ = ("data", "grad")

    def __init__(self, data: npt.ArrayLike, grad: Array | None = None) -> None:
        self.data = np.asarray(data)
        self.grad = grad

    def accumulate(self, grad: Array) -> None:
        """Add `grad`, of data's shape, to the gradient."""
        if self.grad is None:
            self.grad = grad
        else:
            self.grad = self.grad + grad

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype.name})"


class _Norm:
    """What the two layers share: parameters by name, and their exchange with checkpoints."""

    normalized_shape: spec.Shape
    eps: float
    elementwise_affine: bool
    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: spec.Axis,
        eps: SupportsFloat,
        elementwise_affine: bool,
        bias: bool,
        dtype: npt.DTypeLike,
    ) -> None:
        self.normalized_shape = spec.check_normalized_shape(normalized_shape)
        self.eps = spec.check_eps(eps)
        self.elementwise_affine = bool(elementwise_affine)
        dtype = np.dtype(dtype)
        spec.check_parameter_type(dtype.name)
        self.weight = (
            Parameter(np.ones(self.normalized_shape, dtype)) if elementwise_affine else None
        )
        has_bias = elementwise_affine and bias
        self.bias = Parameter(np.zeros(self.normalized_shape, dtype)) if has_bias else None
        self._saved: tuple[Array, Stats] | None = None

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield ("weight", Parameter) and ("bias", Parameter), those that the layer has."""
        for name, parameter in (("weight", self.weight), ("bias", self.bias)):
            if parameter is not None:
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters, for an optimizer."""
        for _, parameter in self.named_parameters():
            yield parameter

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters into a dict, under the names that torch.nn gives them."""
        return {name: parameter.data.copy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take the parameters from a dict of arrays, or of PyTorch tensors on the CPU.

        Args:
            state: as from `state_dict`, of this layer or of torch.nn's. Converted to the layer's
                type.
            strict: whether a missing or an unknown name is an error, or is passed over.
        Raises: ValueError for names and shapes; the parameters are then as they were.
        """
        own = dict(self.named_parameters())
        missing = sorted(own.keys() - state.keys())
        unknown = sorted(state.keys() - own.keys())
        if strict and (missing or unknown):
            raise ValueError(
                f"state has the names {sorted(state)}, but {self!r} needs {sorted(own)} "
                f"(missing {missing}, unknown {unknown}): pass another state, or strict=False"
            )
        loaded = {name: _to_array(state[name]) for name in own if name in state}
        for name, array in loaded.items():
            spec.check_shape(name, array.shape, self.normalized_shape, of=repr(self))
        for name, array in loaded.items():
            own[name].data[...] = array

    def _trailing_axes(self, x: Array) -> tuple[int, ...]:
        return spec.check_trailing(repr(self), self.normalized_shape, x.shape)

    def _parameter_data(self) -> tuple[Array | None, Array | None]:
        weight, bias = self.weight, self.bias
        return None if weight is None else weight.data, None if bias is None else bias.data

    def _recall(self) -> tuple[Array, Stats]:
        if self._saved is None:
            raise ValueError(
                f"backward came before any call of {self!r}, expected a forward first: "
                "call the layer on x"
            )
        return self._saved


class LayerNorm(_Norm):
    """Layer norm over the last axes of x, with parameters `weight` and `bias`.

    y = (x - mean) / sqrt(var + eps) * weight + bias, as `layer_norm`. The arguments, their
    defaults, the parameters' names and first values are those of torch.nn.LayerNorm.

    Args:
        normalized_shape: int or ints, the sizes of x's last axes.
        eps: added to the variance, in units of x squared.
        elementwise_affine: whether there is a weight (ones at first) and a bias (zeros).
        bias: whether there is a bias beside the weight.
        dtype: the parameters' type: that of x, or float32 for 16-bit x.
    Raises: TypeError and ValueError for the arguments.
    """

    def __init__(
        self,
        normalized_shape: spec.Axis,
        eps: SupportsFloat = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, dtype)

    def __call__(self, x: npt.ArrayLike) -> Array:
        """Return y, and remember x (not a copy of it) and its statistics for `backward`."""
        x = arrays.as_array("x", x)
        axes = self._trailing_axes(x)
        weight, bias = self._parameter_data()
        y, stats = layer_norm_forward(x, weight, bias, axis=axes, eps=self.eps)
        self._saved = x, stats
        return y

    def backward(self, dy: npt.ArrayLike) -> Array:
        """Return dx for the last call's x, and add to weight.grad and bias.grad."""
        x, stats = self._recall()
        weight, bias = self._parameter_data()
        dx, dweight, dbias = layer_norm_backward(dy, x, stats, weight, need_dbias=bias is not None)
        assert dx is not None
        if self.weight is not None and dweight is not None:
            self.weight.accumulate(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.accumulate(dbias)
        return dx

    def __repr__(self) -> str:
        without_bias = ", bias=False" if self.weight is not None and self.bias is None else ""
        return (
            f"LayerNorm({self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}{without_bias})"
        )


class RMSNorm(_Norm):
    """RMS norm over the last axes of x, with a parameter `weight`.

    y = x / sqrt(mean(x**2) + eps) * weight, as `rms_norm`. The arguments and the parameter's name
    and first values are those of torch.nn.RMSNorm; eps is 1e-6, where PyTorch's None stands for
    the machine epsilon.

    Args:
        normalized_shape: int or ints, the sizes of x's last axes.
        eps: added to the mean square, in units of x squared.
        elementwise_affine: whether there is a weight (ones at first).
        dtype: the weight's type: that of x, or float32 for 16-bit x.
    Raises: TypeError and ValueError for the arguments.
    """

    def __init__(
        self,
        normalized_shape: spec.Axis,
        eps: SupportsFloat = 1e-6,
        elementwise_affine: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias=False, dtype=dtype)

    def __call__(self, x: npt.ArrayLike) -> Array:
        """Return y, and remember x (not a copy of it) and its statistics for `backward`."""
        x = arrays.as_array("x", x)
        axes = self._trailing_axes(x)
        weight, _ = self._parameter_data()
        y, stats = rms_norm_forward(x, weight, axis=axes, eps=self.eps)
        self._saved = x, stats
        return y

    def backward(self, dy: npt.ArrayLike) -> Array:
        """Return dx for the last call's x, and add to weight.grad."""
        x, stats = self._recall()
        weight, _ = self._parameter_data()
        dx, dweight = rms_norm_backward(dy, x, stats, weight)
        assert dx is not None
        if self.weight is not None and dweight is not None:
            self.weight.accumulate(dweight)
        return dx

    def __repr__(self) -> str:
        return (
            f"RMSNorm({self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine})"
        )


def _to_array(value: Any) -> Array:
    """Take an array-like, or a PyTorch tensor, recognized by its manners: torch is not imported."""
    if hasattr(value, "detach"):
        value = value.detach()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()  # exact; NumPy has no bfloat16 of its own to take it
    return np.asarray(value)
