"""What jax.vmap makes of the primitives: one call for the whole batch.

Where the members of a batch share the parameters, the batch becomes more rows. Where they do not,
or where each member needs its own gradients of the parameters, these vary along the batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import batching

from layernorm.jax import derivatives, formulas
from layernorm.jax.definition import Definition, compute_type
from layernorm.jax.primitives import backward_p, forward, forward_p, saved_in, spaced, tangent_p

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


def _shape_of_one(operand: Array, dim: int | None) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(operand.shape) if axis != dim)


def _with_batch_axis(
    definition: Definition, shape: tuple[int, ...], size: int, *, varies: bool
) -> tuple[int, Definition]:
    """Find where x of this shape takes the batch axis, and define the call for the batch.

    That is in front, unless the kernels would have to read x from too many places: then beside
    another axis of its kind.
    """
    found = ((index, definition.with_axis(index, varies=varies)) for index in range(len(shape)))
    return next(
        (index, batched)
        for index, batched in found
        if batched.is_read_in_place((*shape[:index], size, *shape[index:]))
    )


def _forward(
    operands: Sequence[Any],
    dims: Dims,
    *,
    definition: Definition,
    has_addend: bool,
    has_weight: bool,
    has_bias: bool,
    with_statistics: bool,
) -> tuple[Any, Any]:
    if definition.has_scale and dims[-1] is not None:
        flags = {"has_addend": has_addend, "has_weight": has_weight, "has_bias": has_bias}
        return _forward_by_own_scales(operands, dims, definition, **flags)
    size = _size(operands, dims)
    large = 1 + has_addend + definition.has_gate
    end = len(operands) - definition.has_scale
    parameters, others, scale = operands[large:end], dims[large:end], operands[end:]
    shape = _shape_of_one(operands[0], dims[0])
    varies = any(each is not None for each in others)
    index, batched = _with_batch_axis(definition, shape, size, varies=varies)
    if varies:
        if None in others:
            # In the compute type, so that the sum of the gradients of its repeats is rounded once.
            dtype = compute_type(operands[0].dtype)
            parameters = [each.astype(dtype) for each in parameters]
        at = batched.of_parameters.index(index)
        parameters = [
            _with_batch_at(at, each, own, size)
            for each, own in zip(parameters, others, strict=True)
        ]
    moved = (
        _with_batch_at(index, each, own, size)
        for each, own in zip(operands[:large], dims[:large], strict=True)
    )
    x, addend, gate = spaced(list(moved), (True, has_addend, definition.has_gate))
    weight, bias = spaced(parameters, (has_weight, has_bias))
    results = forward(
        *(x, weight, bias, batched, addend, gate, *scale), with_statistics=with_statistics
    )
    axes = batched.forward_axes(x.ndim, has_addend=has_addend, with_statistics=with_statistics)
    return results, [each.index(index) for each in axes]


def _forward_by_own_scales(
    operands: Sequence[Any], dims: Dims, definition: Definition, **flags: bool
) -> tuple[Any, Any]:
    """Quantize a batch whose members have given scales of their own, by JAX's operations."""

    def of_one(*operands: Array) -> list[Array]:
        plain = definition._replace(quantizing=None)
        (y,) = forward_p.bind(*operands[:-1], definition=plain, with_statistics=False, **flags)
        return formulas.quantized(y, operands[-1], definition)

    return jax.vmap(of_one, tuple(dims))(*operands), [0]


def _backward(
    operands: Sequence[Any],
    dims: Dims,
    *,
    definition: Definition,
    has_dtotal: bool,
    need: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    parameter_type: Any,
) -> tuple[Any, Any]:
    size = _size(operands, dims)
    shape = _shape_of_one(operands[0], dims[0])
    parameters = has_weight + has_bias
    of_them = dims[len(dims) - parameters :]
    varies = any(need[1:3]) or any(each is not None for each in of_them)
    index, batched = _with_batch_axis(definition, shape, size, varies=varies)
    of_rows = tuple(range(len(shape) + 1))
    axes = [of_rows] * (1 + has_dtotal + definition.has_gate)
    axes += batched.forward_axes(len(of_rows), with_statistics=True)
    if varies:
        axes += [batched.of_parameters] * parameters
    moved = [
        _with_batch_at(own_axes.index(index), each, own, size)
        for each, own, own_axes in zip(operands, dims, axes, strict=False)
    ]
    results = backward_p.bind(
        *moved,
        *operands[len(axes) :],  # parameters that do not vary
        definition=batched,
        has_dtotal=has_dtotal,
        need=need,
        has_weight=has_weight,
        has_bias=has_bias,
        parameter_type=parameter_type,
    )
    return results, [each.index(index) for each in batched.backward_axes(len(of_rows), need)]


def _tangent(
    operands: Sequence[Any],
    dims: Dims,
    **params: Any,
) -> tuple[Any, Any]:
    results = jax.vmap(functools.partial(tangent, **params), in_axes=tuple(dims))(*operands)
    return results, [0] * len(results)


def tangent(
    *operands: Array,
    definition: Definition,
    given: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    with_total: bool,
) -> list[Array]:
    """Compute tangent_p."""
    count = sum(given)
    saved = saved_in(operands[count:], definition, has_weight=has_weight, has_bias=has_bias)
    rows = derivatives.rows_from(saved, definition)
    of_y = derivatives.forward_tangent(rows, *spaced(operands[:count], given))
    return [of_y, operands[0]] if with_total else [of_y]


batching.primitive_batchers[forward_p] = _forward
batching.primitive_batchers[backward_p] = _backward
batching.primitive_batchers[tangent_p] = _tangent
