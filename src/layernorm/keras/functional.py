"""Layer norm and RMS norm of Keras's tensors: those of the backend, and symbolic ones."""

from typing import Any, SupportsFloat

import keras

from layernorm import spec
from layernorm.keras import backends, beside


def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: Any = None,
    gate: Any = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Any:
    """Normalize `x` over `axis` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    With a gate that is times act(gate); or if not norm_before_gate, the norm of x * act(gate).

    Args:
        x: a tensor of the backend, or a symbolic one: float16, bfloat16, float32 or float64.
        weight, bias: tensors or variables with the normalized shape (x's sizes along `axis`, in
            x's order), or of a shape that broadcasts against x's, with x's sizes along `axis`; or
            None. Of x's type, or both float32 for 16-bit x. Symbolic ones too.
        residual: a tensor of x's shape and type to add first: y is the norm of x + residual.
        gate: a tensor of x's shape and type.
        activation: act, "silu" or "sigmoid"; silu(z) = z * sigmoid(z).
        norm_before_gate: normalize x before the gate is applied. Like `activation` ignored without
            a gate.
        axis: int or ints; need not be the last, nor adjacent.
        eps: added to the variance, in units of x squared.
        zero_centered_weight: multiply by 1 + weight; no effect without a weight.
    Returns: y, with x's shape and type. With a residual (y, total): total is x + residual, rounded
        to x's type, and y the norm of that.
    Raises: the errors of the backend's front end for shapes, axes and types; ValueError for the
        activation.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    options: dict[str, Any] = {"axis": axis, "eps": eps}
    options["zero_centered_weight"] = zero_centered_weight
    if gate is not None:
        options |= _gating(activation, norm_before_gate)
    return _norm(x, weight, bias, residual, gate, centered=True, **options)


def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    residual: Any = None,
    gate: Any = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Any:
    """Divide `x` by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x, weight, residual, gate, activation, norm_before_gate, axis, zero_centered_weight: as in
            `layer_norm`.
        eps: added to the mean square, in units of x squared.
    Returns: y, or (y, total), as `layer_norm` does.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    options: dict[str, Any] = {"axis": axis, "eps": eps}
    options["zero_centered_weight"] = zero_centered_weight
    if gate is not None:
        options |= _gating(activation, norm_before_gate)
    return _norm(x, weight, None, residual, gate, centered=False, **options)


def _gating(activation: str, norm_before_gate: bool) -> dict[str, Any]:
    return {
        "activation": spec.check_activation(activation),
        "norm_before_gate": bool(norm_before_gate),
    }


@keras.saving.register_keras_serializable("layernorm")
class Norm(keras.Operation):
    """The operation, as a node of a functional model."""

    def __init__(
        self,
        axis: spec.Axis,
        eps: SupportsFloat,
        centered: bool,
        zero_centered_weight: bool,
        activation: str = "silu",
        norm_before_gate: bool = True,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.options: dict[str, Any] = {
            "axis": axis,
            "eps": eps,
            "centered": centered,
            "zero_centered_weight": zero_centered_weight,
            "activation": activation,
            "norm_before_gate": norm_before_gate,
        }

    def call(
        self,
        x: Any,
        weight: Any = None,
        bias: Any = None,
        residual: Any = None,
        gate: Any = None,
    ) -> Any:
        """Return y, or (y, total) with a residual."""
        return norm(x, weight, bias, residual, gate, **self.options)

    def compute_output_spec(
        self,
        x: Any,
        weight: Any = None,
        bias: Any = None,
        residual: Any = None,
        gate: Any = None,
    ) -> Any:
        """Return the shapes and types of what `call` returns."""
        check_parameters(x, weight, bias, self.options["axis"])
        y = keras.KerasTensor(x.shape, dtype=x.dtype)
        if gate is not None:
            beside.check_as_x("gate", gate, x)
        if residual is None:
            return y
        beside.check_as_x("residual", residual, x)
        return y, keras.KerasTensor(x.shape, dtype=x.dtype)


def _norm(x: Any, weight: Any, bias: Any, residual: Any, gate: Any, **options: Any) -> Any:
    given = (x, weight, bias, residual, gate)
    if any(isinstance(each, keras.KerasTensor) for each in given):
        return Norm(**options).symbolic_call(*given)
    return norm(*given, **options)


def check_parameters(x: Any, weight: Any, bias: Any, axis: spec.Axis) -> tuple[int, ...]:
    """Check the shapes of weight and bias, as far as they are known; return the axes.

    Raises: ValueError, TypeError.
    """
    axes = spec.normalize_axes(axis, len(x.shape))
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            shape, x_shape = (spec.symbolic_shape(each.shape) for each in (parameter, x))
            spec.check_parameter(name, shape, x_shape, axes)
    return axes


def tensor(given: Any) -> Any:
    """Return a tensor of the backend, or None for None."""
    if given is None or keras.ops.is_tensor(given):
        return given
    if hasattr(given, "ragged_rank"):  # a tensor of TensorFlow that Keras does not convert
        return given
    return keras.ops.convert_to_tensor(given)


def norm(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    gate: Any,
    *,
    axis: spec.Axis,
    eps: SupportsFloat,
    centered: bool,
    zero_centered_weight: bool = False,
    activation: str = "silu",
    norm_before_gate: bool = True,
) -> Any:
    """Return y or (y, total) for tensors of the backend, and for what Keras converts to them."""
    x, weight, bias, residual, gate = map(tensor, (x, weight, bias, residual, gate))
    options: dict[str, Any] = {"axis": axis, "eps": eps, "residual": residual, "gate": gate}
    options |= {"activation": activation, "norm_before_gate": norm_before_gate}
    options["zero_centered_weight"] = zero_centered_weight
    if centered:
        return backends.front_end().layer_norm(x, weight, bias, **options)
    return backends.front_end().rms_norm(x, weight, **options)
