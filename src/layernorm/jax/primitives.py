"""The primitives that JAX sees, and the shapes and types of their results.

    forward_p    x, weight, bias -> y; and the statistics where a derivative follows
    tangent_p    x_tangent, weight_tangent, bias_tangent; x, statistics, weight -> y_tangent
    backward_p   dy; x, statistics, weight -> those of dx, dweight, dbias that are needed

What a transform makes of them: autodiff.py, batching.py, sharding.py and lowering.py.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.sharding import NamedSharding, PartitionSpec

from layernorm.jax.definition import Definition, compute_type

MaybeArray: TypeAlias = Array | None


def _primitive(name: str) -> Primitive:
    primitive = Primitive(f"layernorm_{name}")
    primitive.multiple_results = True
    of_thread = threading.local()

    @functools.cache
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    def implementation(*operands: Any, **params: Any) -> Any:
        if getattr(of_thread, "is_running", False):
            # jax_debug_nans and jax_debug_infs have found such a value in the compiled operation,
            # and call it again, operation by operation. It is the operation.
            raise FloatingPointError(f"invalid value (nan or inf) encountered in {primitive.name}")
        of_thread.is_running = True
        try:
            with jax.disable_jit(False):
                return compiled(tuple(params.items()))(*operands)
        finally:
            of_thread.is_running = False

    primitive.def_impl(implementation)
    return primitive


forward_p = _primitive("forward")
tangent_p = _primitive("tangent")
backward_p = _primitive("backward")


def forward(
    x: Array, weight: MaybeArray, bias: MaybeArray, definition: Definition, *, with_statistics: bool
) -> list[Array]:
    """Return [y], or with statistics [y, mean, rstd, residual]; for RMS norm [y, rstd]."""
    weight, bias = (_sharded_like(x, each, definition.of_parameters) for each in (weight, bias))
    results: list[Array] = forward_p.bind(
        *present(x, weight, bias),
        definition=definition,
        has_weight=weight is not None,
        has_bias=bias is not None,
        with_statistics=with_statistics,
    )
    return results


def tangent(
    tangents: Sequence[MaybeArray],
    x: Array,
    statistics: Sequence[Array],
    weight: MaybeArray,
    definition: Definition,
) -> Array:
    """Return the tangent of y, from those of x, weight and bias that are not None."""
    (result,) = tangent_p.bind(
        *present(*tangents, x, *statistics, weight),
        definition=definition,
        given=tuple(each is not None for each in tangents),
        has_weight=weight is not None,
    )
    return result


def backward(
    dy: Array,
    x: Array,
    statistics: Sequence[Array],
    weight: MaybeArray,
    definition: Definition,
    *,
    need: tuple[bool, ...],
    parameter_type: Any,
) -> list[MaybeArray]:
    """Return dx, dweight and dbias; None for those that are not needed."""
    results = backward_p.bind(
        *present(dy, x, *statistics, weight),
        definition=definition,
        need=need,
        has_weight=weight is not None,
        parameter_type=jnp.dtype(parameter_type),
    )
    return spaced(results, need)


def _sharded_like(x: Array, parameter: MaybeArray, axes: Sequence[int]) -> MaybeArray:
    """Shard a parameter like these axes of x, where a mesh has explicit axes.

    There the sharding is part of a type, and the gradient, sharded like x, has the parameter's.
    """
    if parameter is None:
        return None
    aval = jax.typeof(parameter)
    sharding = _shaped(jax.typeof(x), axes, parameter.dtype).sharding
    if tuple(aval.sharding.spec) == tuple(sharding.spec):
        return parameter
    return jax.sharding.reshard(parameter, sharding)


def present(*operands: Any) -> list[Any]:
    """Return the operands that are not None."""
    return [each for each in operands if each is not None]


def spaced(results: Sequence[Any], given: Sequence[bool]) -> list[Any]:
    """Undo `present`: put None where nothing was given."""
    following = iter(results)
    return [next(following) if each else None for each in given]


def parts(operands: Sequence[Any], definition: Definition, has_weight: bool) -> tuple[Any, ...]:
    """Split (x, *statistics, weight) into x, the statistics, and the weight or None."""
    x, *statistics = operands
    weight = statistics.pop() if has_weight else None
    assert len(statistics) == definition.statistics
    return x, statistics, weight


def _shaped(x: Any, axes: Sequence[int], dtype: Any) -> Any:
    """Describe an array that has these axes of x."""
    spec = tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))
    sharding = NamedSharding(x.sharding.mesh, PartitionSpec(*(spec[axis] for axis in axes)))
    shape = tuple(x.shape[axis] for axis in axes)
    return x.update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False, sharding=sharding)


def forward_shapes(
    x: Any,
    *parameters: Any,
    definition: Definition,
    has_weight: bool,
    has_bias: bool,
    with_statistics: bool,
) -> list[Any]:
    """Describe y and the statistics."""
    of_y, *of_statistics = definition.forward_axes(x.ndim, with_statistics=with_statistics)
    statistics = [_shaped(x, axes, compute_type(x.dtype)) for axes in of_statistics]
    return [_shaped(x, of_y, x.dtype), *statistics]


def backward_shapes(
    dy: Any,
    x: Any,
    *others: Any,
    definition: Definition,
    need: tuple[bool, ...],
    has_weight: bool,
    parameter_type: Any,
) -> list[Any]:
    """Describe those of dx, dweight and dbias that are needed."""
    types = (x.dtype, parameter_type, parameter_type)
    needed = [dtype for dtype, each in zip(types, need, strict=True) if each]
    every_axes = definition.backward_axes(x.ndim, need)
    return [_shaped(x, axes, dtype) for axes, dtype in zip(every_axes, needed, strict=True)]


def _tangent_shapes(*operands: Any, definition: Definition, given: Any, has_weight: bool) -> Any:
    x = operands[sum(given)]
    return [_shaped(x, range(x.ndim), x.dtype)]


forward_p.def_abstract_eval(forward_shapes)
tangent_p.def_abstract_eval(_tangent_shapes)
backward_p.def_abstract_eval(backward_shapes)
