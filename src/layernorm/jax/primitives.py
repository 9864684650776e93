"""The primitives that JAX sees, and the shapes and types of their results.

    forward_p    x, weight, bias -> y; and the statistics where a derivative follows
    tangent_p    x_tangent, weight_tangent, bias_tangent; x, statistics, weight -> y_tangent
    backward_p   dy; x, statistics, weight -> those of dx, dweight, dbias that are needed

With a residual, an operand that is called `addend` here, since a statistic has that name:

    forward_p    x, addend, weight, bias -> y, total; and the statistics of total
    tangent_p    as above, of total for x -> y_tangent, and total's, which is x_tangent
    backward_p   dy, dtotal; as above, of total for x -> as above, with dtotal added to dx

So one call of backward_p has the gradients of both results, and rounds dx once.

With a gate, which rules out an addend:

    forward_p    x, gate, weight, bias -> y; and the statistics of the norm's input
    tangent_p    as at first, and gate_tangent; x, gate, statistics, weight, bias -> y_tangent
    backward_p   dy; x, gate, statistics, weight, bias -> as at first, and dgate

Quantized, which rules out both, and has no derivatives:

    forward_p    x, weight, bias -> q, scales; or with a given scale x, weight, bias, scale -> q

What a transform makes of them: autodiff.py, batching.py, sharding.py and lowering.py.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

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


class Saved(NamedTuple):
    """What the derivatives need of a forward: an argument of tangent_p and backward_p."""

    x: Array  # the total, if there is one
    gate: MaybeArray
    statistics: Sequence[Array]
    weight: MaybeArray
    bias: MaybeArray  # None without a gate, whose gradient alone depends on it

    def operands(self) -> list[Array]:
        """Return the arrays, for `saved_in` to read."""
        return present(self.x, self.gate, *self.statistics, self.weight, self.bias)


def forward(
    x: Array,
    weight: MaybeArray,
    bias: MaybeArray,
    definition: Definition,
    addend: MaybeArray = None,
    gate: MaybeArray = None,
    scale: MaybeArray = None,
    *,
    with_statistics: bool,
) -> list[Array]:
    """Return [y], or with statistics [y, mean, rstd, residual]; for RMS norm [y, rstd].

    With an addend, its sum with x follows y, and the rest is of that sum. Quantized, it is
    [q, scales], or with a scale [q].
    """
    addend, gate = (_sharded_like(x, each, range(x.ndim)) for each in (addend, gate))
    weight, bias = (_sharded_like(x, each, definition.of_parameters) for each in (weight, bias))
    results: list[Array] = forward_p.bind(
        *present(x, addend, gate, weight, bias, scale),
        definition=definition,
        has_addend=addend is not None,
        has_weight=weight is not None,
        has_bias=bias is not None,
        with_statistics=with_statistics,
    )
    return results


def tangent(
    tangents: Sequence[MaybeArray],
    saved: Saved,
    definition: Definition,
    *,
    with_total: bool = False,
) -> list[Array]:
    """Return [y_tangent], from the tangents of x, weight, bias and gate that are not None.

    With total, which x then is: [y_tangent, x_tangent].
    """
    results: list[Array] = tangent_p.bind(
        *present(*tangents),
        *saved.operands(),
        definition=definition,
        given=tuple(each is not None for each in tangents),
        has_weight=saved.weight is not None,
        has_bias=saved.bias is not None,
        with_total=with_total,
    )
    return results


def backward(
    dy: Array,
    saved: Saved,
    definition: Definition,
    *,
    dtotal: MaybeArray = None,
    need: tuple[bool, ...],
    parameter_type: Any,
) -> list[MaybeArray]:
    """Return dx, dweight, dbias and dgate; None for those not needed. dtotal is added to dx."""
    results = backward_p.bind(
        *present(dy, dtotal),
        *saved.operands(),
        definition=definition,
        has_dtotal=dtotal is not None,
        need=need,
        has_weight=saved.weight is not None,
        has_bias=saved.bias is not None,
        parameter_type=jnp.dtype(parameter_type),
    )
    return spaced(results, need)


def _sharded_like(x: Array, parameter: MaybeArray, axes: Sequence[int]) -> MaybeArray:
    """Shard a parameter, an addend or a gate like these axes of x, where a mesh has explicit axes.

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


def saved_in(
    operands: Sequence[Any], definition: Definition, *, has_weight: bool, has_bias: bool
) -> Saved:
    """Undo `Saved.operands`; also for the tangents of these, or for other things in their place."""
    given = (True, definition.has_gate, *[True] * definition.statistics, has_weight, has_bias)
    x, gate, *statistics, weight, bias = spaced(operands, given)
    return Saved(x, gate, statistics, weight, bias)


def _shaped(x: Any, axes: Sequence[int], dtype: Any) -> Any:
    """Describe an array that has these axes of x."""
    spec = tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))
    sharding = NamedSharding(x.sharding.mesh, PartitionSpec(*(spec[axis] for axis in axes)))
    shape = tuple(x.shape[axis] for axis in axes)
    return x.update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False, sharding=sharding)


def forward_shapes(
    x: Any,
    *others: Any,
    definition: Definition,
    has_addend: bool,
    has_weight: bool,
    has_bias: bool,
    with_statistics: bool,
) -> list[Any]:
    """Describe y, total and the statistics; or q and the scales."""
    every_axes = definition.forward_axes(
        x.ndim, has_addend=has_addend, with_statistics=with_statistics
    )
    large = 1 + has_addend
    y_type = x.dtype if definition.quantizing is None else definition.quantizing.dtype
    types = [y_type] * large + [compute_type(x.dtype)] * (len(every_axes) - large)
    return [_shaped(x, axes, dtype) for axes, dtype in zip(every_axes, types, strict=True)]


def backward_shapes(
    *operands: Any,
    definition: Definition,
    has_dtotal: bool,
    need: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    parameter_type: Any,
) -> list[Any]:
    """Describe those of dx, dweight, dbias and dgate that are needed."""
    x = operands[1 + has_dtotal]
    types = (x.dtype, parameter_type, parameter_type, x.dtype)
    needed = [dtype for dtype, each in zip(types, need, strict=True) if each]
    every_axes = definition.backward_axes(x.ndim, need)
    return [_shaped(x, axes, dtype) for axes, dtype in zip(every_axes, needed, strict=True)]


def _tangent_shapes(
    *operands: Any,
    definition: Definition,
    given: Any,
    has_weight: bool,
    has_bias: bool,
    with_total: bool,
) -> Any:
    x = operands[sum(given)]
    return [_shaped(x, range(x.ndim), x.dtype)] * (1 + with_total)


forward_p.def_abstract_eval(forward_shapes)
tangent_p.def_abstract_eval(_tangent_shapes)
backward_p.def_abstract_eval(backward_shapes)
