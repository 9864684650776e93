"""Layer norm and RMS norm of JAX arrays."""

import functools
from typing import Any, SupportsFloat, overload

import jax
from jax import Array
from jax.typing import ArrayLike

from layernorm import spec
from layernorm.jax import arguments, autodiff, lowering, primitives
from layernorm.jax.definition import Definition

assert autodiff, "imported for its effect: it registers the derivatives of the primitives"
assert lowering, "imported for its effect: it registers what the primitives compile to"


@overload
def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    residual: None = None,
    gate: ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
    axis_name: arguments.AxisNames | None = None,
) -> Array: ...
@overload
def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    residual: ArrayLike,
    gate: ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
    axis_name: arguments.AxisNames | None = None,
) -> tuple[Array, Array]: ...
def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    residual: ArrayLike | None = None,
    gate: ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-5,
    zero_centered_weight: bool = False,
    axis_name: arguments.AxisNames | None = None,
) -> Array | tuple[Array, Array]:
    """Normalize `x` over `axis` to zero mean and unit variance, then scale and shift.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with the biased variance.

    Args:
        x: array, float16, bfloat16, float32 or (with jax_enable_x64) float64, of any shape.
        weight, bias: arrays with the normalized shape (x's sizes along `axis`, in x's order), or
            None. Or of a shape that broadcasts against x, with x's sizes along `axis`: adaptive
            layer norm is `weight=scale[:, None], bias=shift[:, None], zero_centered_weight=True`.
            Of x's type, or both float32 for 16-bit x.
        residual: array of x's shape and type to add first: y is the norm of x + residual. Or
            float32 for 16-bit x: a stream that is kept in float32, as is total then.
        gate: array z of x's shape and type: y = n * act(z), with n the norm as above.
        activation: act: "silu", z * sigmoid(z), or "sigmoid". Ignored without a gate.
        norm_before_gate: if False, y is the norm of x * act(z). Ignored without a gate.
        axis: int or ints; need not be the last, nor adjacent.
        eps: added to the variance, in units of x squared. A number, not a traced array.
        zero_centered_weight: multiply by 1 + weight; no effect without a weight.
        axis_name: within `jax.shard_map`, the axis of the mesh, or a tuple of axes, whose devices
            each have a part of every row, of equal sizes: the mean and the variance are those of
            the whole rows. The arrays are this device's parts.
    Returns: y, with x's shape and type. With a residual (y, total): total is x + residual, rounded
        to the residual's type, and y the norm of that. Both have derivatives. With a gate, y is
        computed in float32 (float64 for float64) and rounded once.
    Raises: while the call is traced, ValueError for shapes, axes, eps, an unknown activation and an
        axis_name that no `shard_map` around the call maps over, TypeError for types.
    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    gated = (gate, activation, norm_before_gate)
    options = {
        "axis": axis,
        "eps": eps,
        "zero_centered_weight": zero_centered_weight,
        "axis_name": axis_name,
    }
    return _norm(x, residual, gated, weight, bias, centered=True, **options)


@overload
def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    residual: None = None,
    gate: ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
    axis_name: arguments.AxisNames | None = None,
) -> Array: ...
@overload
def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    residual: ArrayLike,
    gate: ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
    axis_name: arguments.AxisNames | None = None,
) -> tuple[Array, Array]: ...
def rms_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    residual: ArrayLike | None = None,
    gate: ArrayLike | None = None,
    activation: str = "silu",
    norm_before_gate: bool = True,
    axis: spec.Axis = -1,
    eps: SupportsFloat = 1e-6,
    zero_centered_weight: bool = False,
    axis_name: arguments.AxisNames | None = None,
) -> Array | tuple[Array, Array]:
    """Divide `x` by its root mean square over `axis`, then scale.

    y = x / sqrt(mean(x**2) + eps) * weight

    Args:
        x, weight, residual, gate, activation, norm_before_gate, axis, zero_centered_weight,
            axis_name: as in `layer_norm`.
        eps: added to the mean square, in units of x squared.
    Returns: y, with x's shape and type; with a residual (y, total), as in `layer_norm`.
    Raises: as `layer_norm` does.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    gated = (gate, activation, norm_before_gate)
    options = {
        "axis": axis,
        "eps": eps,
        "zero_centered_weight": zero_centered_weight,
        "axis_name": axis_name,
    }
    return _norm(x, residual, gated, weight, None, centered=False, **options)


def _norm(
    x: ArrayLike,
    residual: ArrayLike | None,
    gated: tuple[ArrayLike | None, str, bool],
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    **options: Any,
) -> Array | tuple[Array, Array]:
    x = arguments.as_array("x", x)
    weight = None if weight is None else arguments.as_array("weight", weight)
    bias = None if bias is None else arguments.as_array("bias", bias)
    gate, gating = arguments.checked_gate(x, *gated)
    if residual is not None:
        residual = arguments.as_array("residual", residual)
        if arguments.widens(x, residual):
            wide = residual.dtype
            weight, bias = (
                each.astype(wide) if each is not None and each.dtype == x.dtype else each
                for each in (weight, bias)
            )
            gated = (None if gate is None else gate.astype(wide), *gated[1:])
            y, total = _norm(x.astype(wide), residual, gated, weight, bias, **options)
            return y.astype(x.dtype), total
    definition = arguments.define(x, weight, bias, gating=gating, **options)
    addend = None if residual is None else arguments.checked_like_x("residual", residual, x)
    if 0 in x.shape:
        return x if addend is None else (x, x)
    y, *total = compiled(x, addend, gate, weight, bias, None, definition)
    return (y, *total) if total else y


@functools.partial(jax.jit, static_argnames="definition", inline=True)
def compiled(
    x: Array,
    addend: Array | None,
    gate: Array | None,
    weight: Array | None,
    bias: Array | None,
    scale: Array | None,
    definition: Definition,
) -> list[Array]:
    """Return y, and with an addend its sum with x, of which y is the norm.

    Quantized, return q, and without a given scale those of the rows.
    """
    arrays = arguments.vary_alike((x, addend, gate, weight, bias, scale))
    x, addend, gate, weight, bias, scale = arrays
    weight, bias = arguments.compact_parameters(x, (weight, bias), definition)
    totals = []
    if addend is not None and gate is not None:
        # An operation of its own, whose rounding XLA would drop where the formulas follow.
        x, addend = jax.lax.optimization_barrier(x + addend), None
        totals = [x]
    order = arguments.order_of(x.shape, definition)
    addend, gate = (None if each is None else each.transpose(order) for each in (addend, gate))
    moved = definition.moved(order)
    results = primitives.forward(
        x.transpose(order), *(weight, bias, moved, addend, gate, scale), with_statistics=False
    )
    results = [each if each.ndim == x.ndim else moved.spread_rows(each) for each in results]
    back = [order.index(axis) for axis in range(x.ndim)]
    return [*(each.transpose(back) for each in results), *totals]
