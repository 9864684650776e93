"""Layer norm and RMS norm as layers that replace Keras's own."""

from collections import Counter
from collections.abc import Callable
from numbers import Real
from typing import Any

import keras
from keras import ops

from layernorm import spec
from layernorm.keras import beside
from layernorm.keras.functional import norm

# Types of x that LayerNormalization takes besides ours, and normalizes in float32 or float64.
_INTEGERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))

# TensorFlow's and JAX's tensors that are not dense.
_SPARSE = ("SparseTensor", "IndexedSlices", "JAXSparse")


class _TakesResidualAndGate(keras.layers.Layer):
    """What a call with a residual, whose results are two, or with a gate changes in a layer."""

    def compute_output_shape(
        self,
        input_shape: tuple[int | None, ...],
        residual_shape: Any = None,
        gate_shape: Any = None,
    ) -> Any:
        """Return y's shape, or with a residual those of y and total."""
        shape = super().compute_output_shape(input_shape)
        return shape if residual_shape is None else (shape, shape)

    def compute_output_spec(self, *given: Any, **named: Any) -> Any:
        """Return the shapes and types of what `call` returns."""
        call = self._call_signature.bind(*given, **named)
        call.apply_defaults()
        x, residual, gate, activation, _ = call.args
        y = keras.KerasTensor(self.compute_output_shape(x.shape), dtype=self.compute_dtype)
        if gate is not None:
            spec.check_activation(activation)
            beside.check_as_x("gate", gate, x)
        if residual is None:
            return y
        beside.check_as_x("residual", residual, x)
        return y, keras.KerasTensor(x.shape, dtype=x.dtype)

    def _set_mask_metadata(self, inputs: Any, outputs: Any, previous_mask: Any) -> None:
        for each in outputs if isinstance(outputs, tuple) else [outputs]:
            super()._set_mask_metadata(inputs, each, previous_mask)


@keras.saving.register_keras_serializable("layernorm")
class LayerNormalization(_TakesResidualAndGate, keras.layers.LayerNormalization):
    """Layer norm: a `keras.layers.LayerNormalization`, with its arguments, weights and files.

    y = (x - mean) / sqrt(var + epsilon) * gamma + beta, as `layernorm.keras.layer_norm`. Called
    with a residual, `layer(x, residual)`, it returns (y, total): total = x + residual, and y is the
    norm of that. `layer(x, gate=z)` returns y * act(z), or the norm of x * act(z).

    Args: those of keras.layers.LayerNormalization. gamma and beta have x's sizes along `axis`, in
        x's order.
    """

    axis: Any

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create gamma and beta."""
        axes = _sorted(self.axis)
        self.axis = _in_order(axes, len(input_shape))
        try:
            super().build(input_shape)
        finally:
            self.axis = axes

    def call(
        self,
        inputs: Any,
        residual: Any = None,
        gate: Any = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Any:
        """Return y; with a residual (y, total): total = inputs + residual, y is its norm.

        With a gate, y is norm(inputs) * act(gate), or if not norm_before_gate, the norm of
        inputs * act(gate). act is "silu" or "sigmoid".
        """
        parameters = (self.gamma, self.beta)
        is_alone = residual is None and gate is None
        types = (*spec.TYPES, *_INTEGERS) if is_alone else spec.TYPES
        given = (inputs, residual, gate, activation, norm_before_gate)
        # rms_scaling is not RMS norm: Keras then divides by the standard deviation.
        if self.rms_scaling or not _is_served(self, inputs, parameters, types):
            return _composed(self, super().call, *given)
        results = _call(self, *given, *parameters, centered=True)
        y, *total = results if isinstance(results, tuple) else (results,)
        y = y if _type_of(y) == self.compute_dtype else ops.cast(y, self.compute_dtype)
        return (y, *total) if total else y

    def load_own_variables(self, store: Any) -> None:
        """Load gamma and beta from a file of ours or of Keras's."""
        super().load_own_variables(_reshaped(self, store))


@keras.saving.register_keras_serializable("layernorm")
class RMSNormalization(_TakesResidualAndGate, keras.layers.RMSNormalization):
    """RMS norm: a `keras.layers.RMSNormalization`, with its arguments, weight and files.

    y = x / sqrt(mean(x**2) + epsilon) * scale, as `layernorm.keras.rms_norm`. Called with a
    residual, `layer(x, residual)`, it returns (y, total): total = x + residual, and y is the norm
    of that. `layer(x, gate=z)` returns y * act(z), or the norm of x * act(z).

    Args: those of keras.layers.RMSNormalization; `axis` may be ints. `scale` has x's sizes along
        `axis`, in x's order, and is not rounded to a 16-bit type before it is used.
    """

    axis: Any

    def __init__(self, axis: Any = -1, epsilon: float = 1e-6, **options: Any) -> None:
        masking = options.pop("supports_masking", True)
        super().__init__(axis, epsilon, **options)
        self.supports_masking = masking

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create scale."""
        self.axis = _sorted(self.axis)
        self.scale = self.add_weight(
            name="scale",
            shape=tuple(input_shape[each] for each in _in_order(self.axis, len(input_shape))),
            initializer="ones",
            autocast=False,
        )

    def call(
        self,
        x: Any,
        residual: Any = None,
        gate: Any = None,
        activation: str = "silu",
        norm_before_gate: bool = True,
    ) -> Any:
        """Return y; with a residual (y, total): total = x + residual, y is its norm.

        With a gate, y is norm(x) * act(gate), or if not norm_before_gate, the norm of
        x * act(gate). act is "silu" or "sigmoid".
        """
        given = (x, residual, gate, activation, norm_before_gate)
        if not _is_served(self, x, (self.scale,), spec.TYPES):  # Keras keeps integers integers
            return _composed(self, super().call, *given)
        return _call(self, *given, self.scale, None, centered=False)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments. A converted layer stops masks, as it did; so must its copies."""
        config: dict[str, Any] = super().get_config()
        return config if self.supports_masking else {**config, "supports_masking": False}

    def load_own_variables(self, store: Any) -> None:
        """Load scale from a file of ours or of Keras's."""
        super().load_own_variables(_reshaped(self, store))


def _sorted(axis: Any) -> list[Any]:
    """Return the axes as Keras keeps them in a layer that is built: [1, -1] becomes [-1, 1]."""
    return sorted(axis) if isinstance(axis, list | tuple) else [axis]


def _in_order(axes: list[Any], rank: int) -> list[int]:
    """Return the axes counted from the front, in x's order."""
    return sorted(range(rank)[each] for each in axes)


def _type_of(x: Any) -> str:
    return str(keras.backend.standardize_dtype(x.dtype))


def _is_served(layer: Any, x: Any, parameters: tuple[Any, ...], types: tuple[str, ...]) -> bool:
    """Tell whether ours can compute y: where not, Keras's own code runs, or raises its error."""
    if not hasattr(x, "dtype") or _type_of(x) not in types or isinstance(x, keras.KerasTensor):
        return False
    # None is Keras's own epsilon, and a variable may change.
    if not (isinstance(layer.epsilon, Real) and spec.is_eps(layer.epsilon)):
        return False
    try:
        axes = spec.normalize_axes(layer.axis, len(x.shape))
    except (TypeError, ValueError):
        return False
    if hasattr(x, "ragged_rank") and min(axes) <= x.ragged_rank:
        return False
    if any(each.__name__ in _SPARSE for each in type(x).__mro__):
        return False
    sizes = [x.shape[each] for each in axes]
    return all(each is None or _has_sizes(each, sizes) for each in parameters)


def _has_sizes(parameter: Any, sizes: list[int | None]) -> bool:
    """Tell whether a parameter has these sizes, in any order. Keras broadcasts other shapes."""
    return Counter(getattr(parameter, "shape", ())) == Counter(sizes)


def _composed(
    layer: Any,
    call: Callable[[Any], Any],
    x: Any,
    residual: Any,
    gate: Any,
    activation: str,
    norm_before_gate: bool,
) -> Any:
    """Call Keras's own code, which knows no residual and no gate."""
    total = x if residual is None else beside.add(x, residual)
    if gate is None:
        y = call(total)
    else:
        y = beside.gated(
            lambda d: ops.cast(call(d), d.dtype), total, gate, activation, norm_before_gate
        )
        y = ops.cast(y, layer.compute_dtype)
    return y if residual is None else (y, total)


def _call(
    layer: Any,
    x: Any,
    residual: Any,
    gate: Any,
    activation: str,
    norm_before_gate: bool,
    weight: Any,
    bias: Any,
    *,
    centered: bool,
) -> Any:
    x_type = _type_of(x)
    if x_type not in spec.TYPES:
        x_type = spec.compute_type(layer.compute_dtype)
        x = ops.cast(x, x_type)
    axes = spec.normalize_axes(layer.axis, len(x.shape))
    weight, bias = _parameters(weight, bias, x_type, [x.shape[each] for each in axes])
    options = {"axis": axes[0] if len(axes) == 1 else axes, "eps": layer.epsilon}
    options |= {"activation": activation, "norm_before_gate": norm_before_gate}
    return norm(x, weight, bias, residual, gate, centered=centered, **options)


def _parameters(weight: Any, bias: Any, x_type: str, shape: list[int]) -> list[Any]:
    """Return the variables' values in a type allowed beside x's, and in the normalized shape."""
    allowed = spec.parameter_types(x_type)
    given = [
        each if each is None else ops.convert_to_tensor(each, dtype=each.dtype)
        for each in (weight, bias)
    ]
    types = {keras.backend.standardize_dtype(each.dtype) for each in given if each is not None}
    fits = len(types) < 2 and types <= set(allowed)
    return [
        # Where Keras built the layer over axes [1, -1], the sizes are in the other order. Keras
        # reshapes them too.
        each
        if each is None or (fits and list(each.shape) == shape)
        else ops.reshape(each if fits else ops.cast(each, allowed[-1]), shape)
        for each in given
    ]


def _reshaped(layer: Any, store: Any) -> Any:
    """Reshape saved weights to the layer's shapes, where Keras sorted the axes [1, -1]."""
    axes = _sorted(layer.axis)
    if not axes or not axes[0] < 0 <= axes[-1]:
        return store
    saved = {key: store[key] for key in tuple(store.keys())}
    variables = layer._trainable_variables + layer._non_trainable_variables
    for key, variable in zip(saved, variables, strict=False):
        if sorted(saved[key].shape) == sorted(variable.shape):
            saved[key] = saved[key][()].reshape(tuple(variable.shape))
    return saved
