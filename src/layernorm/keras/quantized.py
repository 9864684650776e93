"""Norms in 8 bits of Keras's tensors: those of the backend, and symbolic ones."""

from typing import Any, SupportsFloat

import keras

from layernorm import spec
from layernorm.keras import backends
from layernorm.keras.functional import check_parameters, tensor


def quantized_layer_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    dtype: Any = "int8",
    scale: Any = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
) -> Any:
    """Return the layer norm of `x` in 8 bits, and the scale of each row: y is about q * scale.

    q = y / scale, rounded to nearest, ties to even, and saturated, where y is what `layer_norm`
    returns, rounded to x's type. The scale of a row is max|y| / m, where m is the largest number of
    `dtype`, but at least the smallest normal number of the scale's type: so zeros give zeros. A row
    with a NaN has the scale NaN; a NaN becomes 0 in int8, NaN in float8. There is no gradient.

    Args:
        x, weight, bias, axis, eps, zero_centered_weight: as in `layer_norm`.
        dtype: of q: "int8" (m = 127), "float8_e4m3fn" (448) or "float8_e5m2" (57344); or the
            backend's type.
        scale: for all rows: a positive number, or a tensor with one, whose value is not checked.
            Then int8 goes from -128 to 127.
    Returns: (q, scales): q of x's shape; scales of x's shape with the normalized axes kept as size
        1, float32 (float64 for float64 x). With a given scale q alone.
    Raises: the errors of the backend's front end for shapes, axes and types; TypeError for `dtype`;
        ValueError and TypeError for `scale`.
    """
    options: dict[str, Any] = {"axis": axis, "eps": eps, "centered": True}
    options["zero_centered_weight"] = zero_centered_weight
    return _quantized_norm(x, weight, bias, scale, dtype, options)


def quantized_rms_norm(
    x: Any,
    weight: Any = None,
    *,
    dtype: Any = "int8",
    scale: Any = None,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
) -> Any:
    """Return the RMS norm of `x` in 8 bits, and the scale of each row, as `quantized_layer_norm`.

    Args: as in `rms_norm` and `quantized_layer_norm`.
    Returns: (q, scales), or with a given scale q.
    Raises: as `quantized_layer_norm` does.
    """
    options: dict[str, Any] = {"axis": axis, "eps": eps, "centered": False}
    options["zero_centered_weight"] = zero_centered_weight
    return _quantized_norm(x, weight, None, scale, dtype, options)


@keras.saving.register_keras_serializable("layernorm")
class QuantizedNorm(keras.Operation):
    """The operation, as a node of a functional model."""

    def __init__(
        self,
        quantized_type: str,
        axis: spec.Axis,
        eps: SupportsFloat,
        centered: bool,
        zero_centered_weight: bool,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.quantized_type = quantized_type
        self.options: dict[str, Any] = {"axis": axis, "eps": eps, "centered": centered}
        self.options["zero_centered_weight"] = zero_centered_weight

    def call(self, x: Any, weight: Any = None, bias: Any = None, scale: Any = None) -> Any:
        """Return (q, scales), or with a scale q."""
        return _of_tensors(x, weight, bias, scale, self.quantized_type, **self.options)

    def compute_output_spec(
        self, x: Any, weight: Any = None, bias: Any = None, scale: Any = None
    ) -> Any:
        """Return the shapes and types of what `call` returns."""
        axes = check_parameters(x, weight, bias, self.options["axis"])
        q = keras.KerasTensor(x.shape, dtype=self.quantized_type)
        if scale is not None:
            if not hasattr(scale, "shape"):
                spec.check_scale(scale, x.dtype)
            return q
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        return q, keras.KerasTensor(shape, dtype=spec.compute_type(x.dtype))


def _quantized_norm(
    x: Any, weight: Any, bias: Any, scale: Any, dtype: Any, options: dict[str, Any]
) -> Any:
    name = dtype if isinstance(dtype, str) else keras.backend.standardize_dtype(dtype)
    quantized_type = spec.check_quantized_type(name)
    given = (x, weight, bias, scale)
    if any(isinstance(each, keras.KerasTensor) for each in given):
        return QuantizedNorm(quantized_type, **options).symbolic_call(*given)
    return _of_tensors(*given, quantized_type, **options)


def _of_tensors(
    x: Any,
    weight: Any,
    bias: Any,
    scale: Any,
    quantized_type: str,
    *,
    centered: bool,
    **options: Any,
) -> Any:
    x, weight, bias = map(tensor, (x, weight, bias))
    if isinstance(scale, keras.Variable):
        scale = tensor(scale)
    options |= {"dtype": quantized_type, "scale": scale}
    if centered:
        return backends.front_end().quantized_layer_norm(x, weight, bias, **options)
    return backends.front_end().quantized_rms_norm(x, weight, **options)
