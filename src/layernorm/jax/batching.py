"""What jax.vmap makes of the primitives: one call for the whole batch, and no copied weights.

Where the members of a batch share the parameters, the batch becomes more rows. Where they do not,
or where each member needs its own gradients of the parameters, it becomes a batch axis.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import batching

from layernorm.jax import derivatives
from layernorm.jax.definition import Definition
from layernorm.jax.primitives import backward_p, forward_p, parts, spaced, tangent_p

Dims = Sequence[Any]  # the batch axis of each operand, or None


def _size(operands: Sequence[Any], dims: Dims) -> int:
    return next(
        int(each.shape[dim]) for each, dim in zip(operands, dims, strict=True) if dim is not None
    )


def _with_batch_at(index: int, operand: Array, dim: int | None, size: int) -> Array:
    """Move the batch axis to this index; repeat an operand that has none for each member."""
    if dim is not None:
        return jnp.moveaxis(operand, dim, index)
    shape = (*operand.shape[:index], size, *operand.shape[index:])
    return jnp.broadcast_to(jnp.expand_dims(operand, index), shape)


def _parameter(
    parameter: Array | None, dim: int | None, definition: Definition, x: Array, size: int
) -> Array | None:
    """Move the batch axis of a parameter to the front; one that all batches share is left as it is.

    `definition` and `x` are those of one member.
    """
    if parameter is None:
        return None
    batch = x.shape[: definition.batch_axes]
    own_batch = parameter.ndim - (dim is not None) - len(definition.axes)
    if dim is None:
        return _with_batch_at(0, parameter, None, size) if own_batch else parameter
    parameter = jnp.moveaxis(parameter, dim, 0)
    if own_batch == len(batch):
        return parameter
    spread = parameter.reshape(size, *(1,) * len(batch), *parameter.shape[1:])
    return jnp.broadcast_to(spread, (size, *batch, *parameter.shape[1:]))


def _one_of(operand: Array, dim: int | None) -> Any:
    """Describe one member of the batch."""
    shape = [size for axis, size in enumerate(operand.shape) if axis != dim]
    return jax.ShapeDtypeStruct(shape, operand.dtype)


def _forward(
    operands: Sequence[Any],
    dims: Dims,
    *,
    definition: Definition,
    has_weight: bool,
    has_bias: bool,
    with_statistics: bool,
) -> tuple[Any, Any]:
    given = (True, has_weight, has_bias)
    size = _size(operands, dims)
    (x, *parameters), (dim, *others) = spaced(operands, given), spaced(dims, given)
    params = {"has_weight": has_weight, "has_bias": has_bias, "with_statistics": with_statistics}
    if all(each is None for each in others):
        index = definition.batch_axes
        x, definition = _with_batch_at(index, x, dim, size), definition.with_row_axis()
    else:
        index, one = 0, _one_of(x, dim)
        parameters = [
            _parameter(each, own, definition, one, size)
            for each, own in zip(parameters, others, strict=True)
        ]
        x, definition = _with_batch_at(0, x, dim, size), definition.with_batch_axis()
    present = [x, *(each for each in parameters if each is not None)]
    results = forward_p.bind(*present, definition=definition, **params)
    return results, [index] * len(results)


def _backward(
    operands: Sequence[Any],
    dims: Dims,
    *,
    definition: Definition,
    need: tuple[bool, ...],
    has_weight: bool,
    parameter_type: Any,
) -> tuple[Any, Any]:
    size = _size(operands, dims)
    count = len(operands) - has_weight
    weight, dim = (operands[-1], dims[-1]) if has_weight else (None, None)
    one = _one_of(operands[0], dims[0])
    if dim is None and not any(need[1:]):
        index, batched = definition.batch_axes, definition.with_row_axis()
    else:
        index, batched = 0, definition.with_batch_axis()
        weight = _parameter(weight, dim, definition, one, size)
    rows = [
        _with_batch_at(index, each, own, size)
        for each, own in zip(operands[:count], dims[:count], strict=True)
    ]
    results = backward_p.bind(
        *rows,
        *([] if weight is None else [weight]),
        definition=batched,
        need=need,
        has_weight=has_weight,
        parameter_type=parameter_type,
    )
    return results, [index] * len(results)


def _tangent(
    operands: Sequence[Any],
    dims: Dims,
    *,
    definition: Definition,
    given: tuple[bool, ...],
    has_weight: bool,
) -> tuple[Any, Any]:
    def one(*operands: Any) -> list[Array]:
        return tangent(*operands, definition=definition, given=given, has_weight=has_weight)

    return jax.vmap(one, in_axes=tuple(dims))(*operands), [0]


def tangent(
    *operands: Array, definition: Definition, given: tuple[bool, ...], has_weight: bool
) -> list[Array]:
    """Compute tangent_p."""
    count = sum(given)
    x, statistics, weight = parts(operands[count:], definition, has_weight)
    rows = derivatives.rows_from(x, statistics, weight, definition)
    return [derivatives.forward_tangent(rows, *spaced(operands[:count], given))]


batching.primitive_batchers[forward_p] = _forward
batching.primitive_batchers[backward_p] = _backward
batching.primitive_batchers[tangent_p] = _tangent
