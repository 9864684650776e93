"""Layer norm and RMS norm of Keras's tensors: those of the backend, and symbolic ones."""

from typing import Any, SupportsFloat

import keras

from layernorm import spec
from layernorm.keras import backends, sums


def layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    residual: Any = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Any:
    """Normalize `x` over `axis` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    Args:
        x: a tensor of the backend, or a symbolic one: float16, bfloat16, float32 or float64.
        weight, bias: tensors or variables with the normalized shape (x's sizes along `axis`, in
            x's order), or of a shape that broadcasts against x's, with x's sizes along `axis`; or
            None. Of x's type, or both float32 for 16-bit x. Symbolic ones too.
        residual: a tensor of x's shape and type to add first: y is the norm of x + residual.
        axis: int or ints; need not be the last, nor adjacent.
        eps: added to the variance, in units of x squared.
        zero_centered_weight: multiply by 1 + weight; no effect without a weight.
    Returns: y, with x's shape and type. With a residual (y, total): total is x + residual, rounded
        to x's type, and y the norm of that.
    Raises: the errors of the backend's front end for shapes, axes and types.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    options = {"axis": axis, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return _norm(x, weight, bias, residual, centered=True, **options)


def rms_norm(
    x: Any,
    weight: Any = None,
    *,
    residual: Any = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Any:
    """Divide `x` by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x, weight, residual, axis, zero_centered_weight: as in `layer_norm`.
        eps: added to the mean square, in units of x squared.
    Returns: y, or (y, total), as `layer_norm` does.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    options = {"axis": axis, "eps": eps, "zero_centered_weight": zero_centered_weight}
    return _norm(x, weight, None, residual, centered=False, **options)


@keras.saving.register_keras_serializable("layernorm")
class Norm(keras.Operation):
    """The operation, as a node of a functional model."""

    def __init__(
        self,
        axis: spec.Axis,
        eps: SupportsFloat,
        centered: bool,
        zero_centered_weight: bool,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.options: dict[str, Any] = {
            "axis": axis,
            "eps": eps,
            "centered": centered,
            "zero_centered_weight": zero_centered_weight,
        }

    def call(self, x: Any, weight: Any = None, bias: Any = None, residual: Any = None) -> Any:
        """Return y, or (y, total) with a residual."""
        return norm(x, weight, bias, residual, **self.options)

    def compute_output_spec(
        self, x: Any, weight: Any = None, bias: Any = None, residual: Any = None
    ) -> Any:
        """Return the shapes and types of what `call` returns."""
        axes = spec.normalize_axes(self.options["axis"], len(x.shape))
        for name, parameter in (("weight", weight), ("bias", bias)):
            if parameter is not None:
                shape, x_shape = (spec.symbolic_shape(each.shape) for each in (parameter, x))
                spec.check_parameter(name, shape, x_shape, axes)
        y = keras.KerasTensor(x.shape, dtype=x.dtype)
        if residual is None:
            return y
        sums.check_residual(residual, x)
        return y, keras.KerasTensor(x.shape, dtype=x.dtype)


def _norm(x: Any, weight: Any, bias: Any, residual: Any, **options: Any) -> Any:
    given = (x, weight, bias, residual)
    if any(isinstance(each, keras.KerasTensor) for each in given):
        return Norm(**options).symbolic_call(*given)
    return norm(*given, **options)


def _tensor(given: Any) -> Any:
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
    *,
    axis: spec.Axis,
    eps: SupportsFloat,
    centered: bool,
    zero_centered_weight: bool = False,
) -> Any:
    """Return y or (y, total) for tensors of the backend, and for what Keras converts to them."""
    x, weight, bias, residual = map(_tensor, (x, weight, bias, residual))
    options = {"axis": axis, "eps": eps, "zero_centered_weight": zero_centered_weight}
    options["residual"] = residual
    if centered:
        return backends.front_end().layer_norm(x, weight, bias, **options)
    return backends.front_end().rms_norm(x, weight, **options)
