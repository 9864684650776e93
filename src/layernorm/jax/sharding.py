"""How the primitives run on arrays that are sharded over devices.

Along kept axes each device has whole rows: no communication, but for the sums that dweight and
dbias are. Along normalized axes each has a part of every row: the moments of the parts (equal
counts, means and mean squares) are gathered and merged; the backward adds up two sums a row.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from layernorm.jax import formulas
from layernorm.jax.definition import Definition, compute_type
from layernorm.jax.formulas import Moments, times_power
from layernorm.jax.primitives import backward_p, forward_p, parts, spaced

Names = tuple[str, ...]  # of axes of the mesh


def _local(name: str) -> Primitive:
    primitive = Primitive(f"layernorm_local_{name}")
    primitive.multiple_results = True
    return primitive


local_forward_p = _local("forward")
local_backward_p = _local("backward")


def _ask_for_devices() -> None:
    """Have JAX tell the rules of these primitives which devices there are.

    No public name does; without it, programs for several devices are an error of JAX's.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import dispatch

        dispatch.prim_requires_devices_during_lowering.update((forward_p, backward_p))


_ask_for_devices()


class Plan(NamedTuple):
    """Which axes of the mesh each axis of x is sharded along."""

    mesh: Mesh
    names: tuple[Names, ...]

    def over(self, axes: Sequence[int]) -> Names:
        """Name the mesh's axes that these axes of x are sharded along."""
        return tuple(itertools.chain.from_iterable(self.names[axis] for axis in axes))

    def along(self, axes: Sequence[int]) -> NamedSharding:
        """Shard an array of these axes of x as x is."""
        return NamedSharding(self.mesh, PartitionSpec(*(self.names[axis] or None for axis in axes)))


def _plan(mesh: Mesh, x: Any) -> Plan:
    """Take x as it is sharded, but whole along what the devices would have unequal parts of."""
    spec = tuple(x.sharding.spec) if isinstance(x.sharding, NamedSharding) else ()
    names = []
    for size, given in itertools.zip_longest(x.shape, spec):
        own = given if isinstance(given, tuple) else () if given is None else (given,)
        devices = 1
        for name in own:
            devices *= mesh.shape[name]
        names.append(own if size % devices == 0 else ())
    return Plan(mesh, tuple(names))


class Axes(NamedTuple):
    """The axes of x that each operand and each result has."""

    operands: list[tuple[int, ...]]
    results: list[tuple[int, ...]]
    x: int  # its place among the operands

    def rule(self) -> str:
        """Write the axes as Shardy's rule: each of x's is a factor of its own."""

        def words(every: Sequence[tuple[int, ...]]) -> str:
            return ", ".join(" ".join(f"i{axis}" for axis in axes) for axes in every)

        return f"{words(self.operands)} -> {words(self.results)}"


def _partitioned(
    whole: Callable[..., Any],
    on_each: Callable[[Plan], Callable[..., Any]],
    axes: Axes,
    operands: Sequence[Array],
) -> list[Array]:
    def partition(mesh: Mesh, arguments: Any, results: Any) -> Any:
        plan = _plan(mesh, arguments[axes.x])
        of_operands, of_results = (
            tuple(map(plan.along, every)) for every in (axes.operands, axes.results)
        )
        return mesh, on_each(plan), of_results, of_operands

    def infer(mesh: Mesh, arguments: Any, results: Any) -> Any:
        plan = _plan(mesh, arguments[axes.x])
        return tuple(map(plan.along, axes.results))

    call = custom_partitioning(lambda *operands: tuple(whole(*operands)))
    call.def_partition(partition, infer, sharding_rule=axes.rule())
    return list(call(*operands))


def _axes_of_parameter(parameter: Array, definition: Definition) -> tuple[int, ...]:
    batch = parameter.ndim - len(definition.axes)
    return (*range(batch), *definition.axes)


# ---- forward


def forward(*operands: Array, **params: Any) -> list[Array]:
    """Compute what forward_p stands for, on however many devices."""
    definition, (x, *parameters) = params["definition"], operands
    every = tuple(range(x.ndim))
    statistics = (3 if definition.centered else 1) if params["with_statistics"] else 0
    axes = Axes(
        operands=[every, *(_axes_of_parameter(each, definition) for each in parameters)],
        results=[every, *[definition.kept(x.ndim)] * statistics],
        x=0,
    )

    def whole(*operands: Array) -> list[Array]:
        results: list[Array] = local_forward_p.bind(*operands, **params)
        return results

    def on_each(plan: Plan) -> Callable[..., Any]:
        names = plan.over(definition.axes)
        if not names:
            return lambda *operands: tuple(whole(*operands))
        merged = functools.partial(_merge, names)
        return lambda *operands: tuple(formulas.forward(*operands, **params, merged=merged))

    return _partitioned(whole, on_each, axes, operands)


def _merge(names: Names, rest: Array, own: Moments) -> tuple[Array, Moments]:
    """Merge the moments of all devices' parts; shift and scale this one's part to them."""
    packed = jnp.stack([*own[:3], *(each.astype(own.mean.dtype) for each in own[3:])])
    parted = jax.lax.all_gather(packed, names)
    mean, residual, square = (parted[:, at] for at in range(3))
    mean_powers, powers = (parted[:, at].astype(own.power.dtype) for at in (3, 4))
    mean_power = mean_powers.max(0)
    near = times_power(mean, mean_powers - mean_power)
    middle = near.mean(0)

    def offset_of(mean: Array, residual: Array, power: Array) -> Array:
        shift = power - mean_power
        return (times_power(mean, shift) - middle) + times_power(residual, shift)

    offsets = offset_of(mean, residual, mean_powers)
    more = offsets.mean(0)
    offsets = offsets - more
    power = jnp.maximum(powers.max(0), formulas.exponent(offsets, (0,))[0] + mean_power)
    square = times_power(times_power(square, powers - power), powers - power)
    square = (square + times_power(offsets, mean_power - power) ** 2).mean(0)
    total = middle + more
    merged = Moments(total, (middle - total) + more, square, mean_power, power)
    offset = offset_of(own.mean, own.residual, own.mean_power) - more
    rest = times_power(rest, own.power - power) + times_power(offset, mean_power - power)
    return rest, merged


# ---- backward


def backward(*operands: Array, **params: Any) -> list[Array]:
    """Compute what backward_p stands for, on however many devices."""
    definition, has_weight = params["definition"], params["has_weight"]
    dims = operands[0].ndim
    every, rows = tuple(range(dims)), definition.kept(dims)
    parameter = (*range(definition.batch_axes), *definition.axes)
    statistics = 3 if definition.centered else 1
    axes = Axes(
        operands=[every, every, *[rows] * statistics],
        results=[
            each
            for each, needed in zip((every, parameter, parameter), params["need"], strict=True)
            if needed
        ],
        x=1,
    )
    if has_weight:
        axes.operands.append(_axes_of_parameter(operands[-1], definition))

    def whole(*operands: Array) -> list[Array]:
        results: list[Array] = local_backward_p.bind(*operands, **params)
        return results

    def on_each(plan: Plan) -> Callable[..., Any]:
        across, down = plan.over(definition.axes), plan.over(definition.summed(dims))
        if not across and not (down and any(params["need"][1:])):
            return lambda *operands: tuple(whole(*operands))
        return lambda *operands: tuple(_backward_of_parts(across, down, *operands, **params))

    return _partitioned(whole, on_each, axes, operands)


def _backward_of_parts(
    across: Names,
    down: Names,
    *operands: Array,
    definition: Definition,
    need: tuple[bool, ...],
    has_weight: bool,
    parameter_type: Any,
) -> list[Array]:
    """Return the gradients where other devices have parts of the rows, or other rows."""
    dy, *rest = operands
    x, statistics, weight = parts(rest, definition, has_weight)
    wide = compute_type(x.dtype)
    weight = None if weight is None else weight.astype(wide)  # sums of devices are rounded once
    if across:
        results = _gradients_of_parts(across, dy, x, statistics, weight, definition, need)
    else:
        results = local_backward_p.bind(
            *(dy, x, *statistics, *([weight] if has_weight else [])),
            definition=definition,
            need=need,
            has_weight=has_weight,
            parameter_type=wide,
        )
    dx, *sums = spaced(results, need)
    sums = [each for each in sums if each is not None]
    if sums and down:
        sums = list(jax.lax.psum(jnp.stack(sums), down))  # one collective for both
    return [*([] if dx is None else [dx]), *(each.astype(parameter_type) for each in sums)]


def _gradients_of_parts(
    across: Names,
    dy: Array,
    x: Array,
    statistics: Sequence[Array],
    weight: Array | None,
    definition: Definition,
    need: tuple[bool, ...],
) -> list[Array]:
    wide = compute_type(x.dtype)
    spread = [definition.spread_rows(each) for each in statistics]
    rest, rstd = x.astype(wide), spread[-1]
    if definition.centered:
        mean, rstd, residual = spread
        rest = (rest - mean) - residual
    cols = definition.cols(x.shape) * jax.lax.psum(1, across)

    def centered_and_projected(
        g: Array, xhat: Array, definition: Definition
    ) -> tuple[Array, Array]:
        """Both sums in one collective."""
        sums = jnp.stack([formulas.total(each, definition.axes) for each in (g, g * xhat)])
        mean, inner = jax.lax.psum(sums, across) / cols
        return (g - mean if definition.centered else g), inner

    none = jnp.zeros((), jnp.int32)
    return formulas.gradients(
        dy,
        rest * rstd,
        rstd,
        weight,
        definition,
        x_power=none,
        dy_power=none,
        need=need,
        parameter_type=wide,
        centered_and_projected=centered_and_projected,
    )
