"""Layers with parameters and a hand-written backward, for training with NumPy alone."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, SupportsFloat, overload

import numpy as np
import numpy.typing as npt

from layernorm import spec
from layernorm._native import try_layer_forward
from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array
from layernorm.numpy.backward import backward_gated
from layernorm.numpy.forward import Gate
from layernorm.numpy.functional import norm_backward, norm_beside
from layernorm.numpy.statistics import Stats, StatsFields


class Parameter:
    """An array to learn, `data`, and the gradient of the loss with respect to it, `grad`.

    An optimizer changes `data` in place. `grad` is None until a backward; later ones add to it.
    """

    __slots__ = ("data", "grad")

    def __init__(self, data: npt.ArrayLike, grad: Array | None = None) -> None:
        self.data = arrays.as_array("data", data)
        self.grad = grad

    def accumulate(self, grad: Array) -> None:
        """Add `grad`, of data's shape, to the gradient."""
        if self.grad is None:
            self.grad = grad
        else:
            self.grad = self.grad + grad

    def zero_grad(self) -> None:
        """Set the gradient to None."""
        self.grad = None

    def __repr__(self) -> str:
        return f"Parameter(shape={self.data.shape}, dtype={self.data.dtype.name})"


class _Norm:
    """A norm over the last axes: its parameters, its checkpoints, its forward and backward."""

    _centered: ClassVar[bool]  # False: RMS norm

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
        self._saved: tuple[npt.ArrayLike, npt.ArrayLike | None, StatsFields] | None = None

    @overload
    def __call__(
        self,
        x: npt.ArrayLike,
        residual: None = None,
        gate: npt.ArrayLike | None = None,
        *,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Array: ...
    @overload
    def __call__(
        self,
        x: npt.ArrayLike,
        residual: npt.ArrayLike,
        gate: npt.ArrayLike | None = None,
        *,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> tuple[Array, Array]: ...
    def __call__(
        self,
        x: npt.ArrayLike,
        residual: npt.ArrayLike | None = None,
        gate: npt.ArrayLike | None = None,
        *,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Array | tuple[Array, Array]:
        """Return y, or with a residual (y, total): total is x + residual and y the norm of that.

        The layer keeps what it normalized, x or total, and the gate (not copies), and its
        statistics for `backward`.

        Args:
            x: array whose last sizes are the normalized shape.
            residual, gate, activation, norm_before_gate: as in `layer_norm`.
        Raises: ValueError for shapes, TypeError for types.
        """
        weight = None if self.weight is None else self.weight.data
        bias = None if self.bias is None else self.bias.data
        shape, eps, centered = self.normalized_shape, self.eps, self._centered
        results = None
        if gate is None:
            call = (weight, bias, shape, eps, None, centered, False)
            results = try_layer_forward(x, *call, residual, None)
        if results is None:
            x = arrays.as_array("x", x)
            spec.check_trailing(repr(self), shape, x.shape)
            axes = tuple(range(-len(shape), 0))
            gated = None if gate is None else Gate(gate, activation, norm_before_gate)
            results = norm_beside(
                x, residual, gated, weight, bias, axes, eps, None, None, centered, False, save=True
            )
        y, *rest, fields = results
        total = rest[0] if rest else None
        self._saved = (x if total is None else total), gate, fields
        return y if total is None else (y, total)

    def backward(self, dy: npt.ArrayLike, dtotal: npt.ArrayLike | None = None) -> Array:
        """Return dx for the x of the last call, and add to the parameters' gradients.

        Args:
            dy: gradient with respect to y.
            dtotal: gradient with respect to total, if the call had a residual; dx is then the
                gradient of both x and the residual.
        Raises: ValueError before any call, after one with a gate, and for shapes; TypeError for
            types.
        """
        x, gate, stats = self._last_call()
        if gate is not None:
            raise ValueError(
                f"backward was called after a call of {self!r} with a gate, which has a gradient "
                "too: call gated_backward"
            )
        given = (dy, x, stats, None if self.weight is None else self.weight.data)
        needs = (True, self.weight is not None, self.bias is not None)
        dx, dweight, dbias = norm_backward(*given, *needs, self._centered, False, dtotal)
        self._accumulate(dweight, dbias)
        assert dx is not None
        return dx

    def gated_backward(
        self, dy: npt.ArrayLike, dtotal: npt.ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return dx and dgate for the last call, and add to the parameters' gradients.

        Args: as in `backward`.
        Raises: as `backward` does, and ValueError after a call without a gate.
        """
        x, gate, stats = self._last_call()
        if gate is None:
            raise ValueError(
                f"gated_backward was called after a call of {self!r} without a gate, expected one "
                "with a gate: call backward"
            )
        given = (dy, x, stats, None if self.weight is None else self.weight.data, gate)
        needs = (True, self.weight is not None, self.bias is not None, True)
        gradients = backward_gated(*given, *needs, self._centered, False, dtotal)
        dx, dweight, dbias, dgate = gradients
        self._accumulate(dweight, dbias)
        assert dx is not None
        assert dgate is not None
        return dx, dgate

    def _last_call(self) -> tuple[npt.ArrayLike, npt.ArrayLike | None, Stats]:
        if self._saved is None:
            raise ValueError(
                f"backward was called before any forward of {self!r}, expected a forward first "
                "(a copied or unpickled layer has none): call the layer on x"
            )
        x, gate, fields = self._saved
        return x, gate, Stats(*fields)

    def _accumulate(self, dweight: Array | None, dbias: Array | None) -> None:
        if self.weight is not None and dweight is not None:
            self.weight.accumulate(dweight)
        if self.bias is not None and dbias is not None:
            self.bias.accumulate(dbias)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy keep: all but the last call, as large as its x."""
        return self.__dict__ | {"_saved": None}

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield ("weight", Parameter) and ("bias", Parameter), as far as the layer has them."""
        for name, parameter in (("weight", self.weight), ("bias", self.bias)):
            if parameter is not None:
                yield name, parameter

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters, for an optimizer."""
        for _, parameter in self.named_parameters():
            yield parameter

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters, under the names that torch.nn gives them."""
        return {name: parameter.data.copy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy the parameters from a dict of arrays, or of PyTorch tensors on the CPU.

        Args:
            state: what `state_dict` of this layer or of torch.nn's returns, converted to the
                layer's type.
            strict: whether a missing or an unknown name is an error; else it is ignored.
        Raises: ValueError for names and shapes, TypeError for what is no dict or holds no arrays;
            the parameters are then unchanged.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state is of type {type(state).__name__}, expected a dict of arrays: "
                "pass what state_dict() returned"
            )
        own = dict(self.named_parameters())
        missing = sorted(own.keys() - state.keys())
        unknown = sorted(state.keys() - own.keys())
        if strict and (missing or unknown):
            raise ValueError(
                f"state has the names {sorted(state)}, but {self!r} needs {sorted(own)} "
                f"(missing {missing}, unknown {unknown}): pass another state, or strict=False"
            )
        loaded = {name: _to_array(name, state[name]) for name in own if name in state}
        for name, array in loaded.items():
            spec.check_shape(name, array.shape, self.normalized_shape, of=repr(self))
        for name, array in loaded.items():
            own[name].data[...] = array


class LayerNorm(_Norm):
    """Layer norm over the last axes of x, with parameters `weight` and `bias`.

    y = (x - mean) / sqrt(var + eps) * weight + bias, as in `layer_norm`. The arguments, their
    defaults, and the parameters' names and initial values are those of torch.nn.LayerNorm.

    Args:
        normalized_shape: int or ints, the sizes of x's last axes.
        eps: added to the variance, in units of x squared.
        elementwise_affine: whether there is a weight (initially ones) and a bias (zeros).
        bias: whether the weight comes with a bias.
        dtype: the parameters' type: that of x, or float32 for 16-bit x.
    Raises: TypeError and ValueError for the arguments.
    """

    _centered = True

    def __init__(
        self,
        normalized_shape: spec.Axis,
        eps: SupportsFloat = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, dtype)

    def __repr__(self) -> str:
        without_bias = ", bias=False" if self.weight is not None and self.bias is None else ""
        return (
            f"LayerNorm({self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}{without_bias})"
        )


class RMSNorm(_Norm):
    """RMS norm over the last axes of x, with a parameter `weight`.

    y = x / sqrt(mean(x**2) + eps) * weight, as in `rms_norm`. The arguments and the parameter's
    name and initial values are those of torch.nn.RMSNorm, except that eps is 1e-6, where PyTorch's
    default, None, means the machine epsilon.

    Args:
        normalized_shape: int or ints, the sizes of x's last axes.
        eps: added to the mean square, in units of x squared.
        elementwise_affine: whether there is a weight (initially ones).
        dtype: the weight's type: that of x, or float32 for 16-bit x.
    Raises: TypeError and ValueError for the arguments.
    """

    _centered = False

    def __init__(
        self,
        normalized_shape: spec.Axis,
        eps: SupportsFloat = 1e-6,
        elementwise_affine: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias=False, dtype=dtype)

    def __repr__(self) -> str:
        return (
            f"RMSNorm({self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine})"
        )


def _to_array(name: str, value: Any) -> Array:
    """Return an array-like or a PyTorch tensor as an array, without importing torch."""
    if hasattr(value, "detach"):
        value = value.detach()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()  # exact; NumPy itself has no bfloat16
    return arrays.as_array(name, value)
