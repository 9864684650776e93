"""How the primitives run on arrays that are sharded over devices.

Sharded along kept axes, each device has whole rows: only the sums for dweight and dbias need
communication, along the axes that the parameters do not vary along. Sharded along normalized axes,
each device has a part of every row. The moments of the parts, of equal counts, are gathered and
merged: mean, residual, mean square and two scales, in RMS norm the mean square and its scale. The
backward gathers two means of each part (RMS norm: one) and a scale, and the means of the rest once
more: see `formulas`. For 8 bits, the largest |y| of the parts are gathered too.

Each device merges what it has gathered in the same fixed order, where an all-reduce would add in an
order of its own choice. So the bits of a row do not depend on the device or the run, nor on other
rows, as far as XLA fuses the same operations.

Within `shard_map` a call itself names the axes (`Definition.across`), and is not partitioned.
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

from layernorm.jax import derivatives, formulas
from layernorm.jax.definition import Definition, compute_type
from layernorm.jax.formulas import Moments, times_power
from layernorm.jax.primitives import (
    backward_p,
    forward_p,
    present,
    saved_in,
    spaced,
)

Names = tuple[str, ...]  # of axes of the mesh


def _local(name: str) -> Primitive:
    primitive = Primitive(f"layernorm_local_{name}")
    primitive.multiple_results = True
    return primitive


local_forward_p = _local("forward")
local_backward_p = _local("backward")


def _ask_for_devices() -> None:
    """Have JAX pass the devices to the lowering rules of these primitives.

    No public function does that, and without it JAX refuses programs for several devices.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from jax._src import dispatch

        dispatch.prim_requires_devices_during_lowering.update((forward_p, backward_p))


_ask_for_devices()


class MeshAxes(NamedTuple):
    """The axes of the mesh that each axis of x is sharded along."""

    mesh: Mesh
    names: tuple[Names, ...]

    def over(self, axes: Sequence[int]) -> Names:
        """Return the names of the mesh axes that these axes of x are sharded along."""
        return tuple(itertools.chain.from_iterable(self.names[axis] for axis in axes))

    def along(self, axes: Sequence[int]) -> NamedSharding:
        """Return the sharding, like x's, of an array that has these axes of x."""
        return NamedSharding(self.mesh, PartitionSpec(*(self.names[axis] or None for axis in axes)))


def _mesh_axes(mesh: Mesh, x: Any) -> MeshAxes:
    """Return x's own sharding, without the axes that do not divide evenly among the devices."""
    spec = tuple(x.sharding.spec) if isinstance(x.sharding, NamedSharding) else ()
    names = []
    for size, given in itertools.zip_longest(x.shape, spec):
        own = given if isinstance(given, tuple) else () if given is None else (given,)
        devices = 1
        for name in own:
            devices *= mesh.shape[name]
        names.append(own if size % devices == 0 else ())
    return MeshAxes(mesh, tuple(names))


class Axes(NamedTuple):
    """The axes of x that each operand and each result of a primitive has."""

    operands: list[tuple[int, ...]]
    results: list[tuple[int, ...]]
    x: int  # x's index among the operands

    def rule(self) -> str:
        """Return Shardy's rule, in which each axis of x is a factor of its own."""

        def factors(every: Sequence[tuple[int, ...]]) -> str:
            return ", ".join(" ".join(f"i{axis}" for axis in axes) for axes in every)

        return f"{factors(self.operands)} -> {factors(self.results)}"


def _partitioned(
    whole: Callable[..., Any],
    on_each: Callable[[MeshAxes], Callable[..., Any]],
    axes: Axes,
    operands: Sequence[Array],
) -> list[Array]:
    def partition(mesh: Mesh, arguments: Any, results: Any) -> Any:
        own = _mesh_axes(mesh, arguments[axes.x])
        of_operands, of_results = (
            tuple(map(own.along, every)) for every in (axes.operands, axes.results)
        )
        return mesh, on_each(own), of_results, of_operands

    def infer(mesh: Mesh, arguments: Any, results: Any) -> Any:
        own = _mesh_axes(mesh, arguments[axes.x])
        return tuple(map(own.along, axes.results))

    call = custom_partitioning(lambda *operands: tuple(whole(*operands)))
    call.def_partition(partition, infer, sharding_rule=axes.rule())
    return list(call(*operands))


# ---- forward


def forward(*operands: Array, **params: Any) -> list[Array]:
    """Compute forward_p, on any number of devices."""
    definition, dims = params["definition"], operands[0].ndim
    if definition.across:
        return _forward_of_parts(*operands, **params)
    of_results = {name: params[name] for name in ("has_addend", "with_statistics")}
    axes = Axes(
        operands=[
            *[tuple(range(dims))] * (1 + params["has_addend"] + definition.has_gate),
            *[definition.of_parameters] * (params["has_weight"] + params["has_bias"]),
            *[()] * definition.has_scale,
        ],
        results=definition.forward_axes(dims, **of_results),
        x=0,
    )

    def whole(*operands: Array) -> list[Array]:
        results: list[Array] = local_forward_p.bind(*operands, **params)
        return results

    def on_each(own: MeshAxes) -> Callable[..., Any]:
        across = own.over(definition.axes)
        if not across:
            return lambda *operands: tuple(whole(*operands))
        of_parts = params | {"definition": definition._replace(across=across)}
        return lambda *operands: tuple(_forward_of_parts(*operands, **of_parts))

    return _partitioned(whole, on_each, axes, operands)


def _forward_of_parts(*operands: Array, definition: Definition, **params: Any) -> list[Array]:
    merge = _merge if definition.centered else _merge_squares

    def largest(of_part: Array) -> Array:
        return jax.lax.all_gather(of_part, definition.across).max(0)

    merged = functools.partial(merge, definition.across)
    return formulas.forward(
        *operands, definition=definition, **params, merged=merged, largest=largest
    )


def _merge(names: Names, rest: Array, own: Moments) -> tuple[Array, Moments]:
    """Merge the moments of all devices' parts; shift and scale this device's part to match."""
    mean, residual, square, mean_powers, powers = _gathered(names, own)
    mean_power = mean_powers.max(0)
    near = times_power(mean, mean_powers - mean_power)
    middle = _mean(near)

    def offset_of(mean: Array, residual: Array, power: Array) -> Array:
        shift = power - mean_power
        return (times_power(mean, shift) - middle) + times_power(residual, shift)

    offsets = offset_of(mean, residual, mean_powers)
    more = _mean(offsets)
    offsets = offsets - more
    power = jnp.maximum(powers.max(0), formulas.exponent(offsets, (0,))[0] + mean_power)
    square = times_power(times_power(square, powers - power), powers - power)
    shift = mean_power - power
    # Powers of two last: XLA may fuse a product into a sum, in some shapes, and this one is exact.
    square = _mean(square) + _mean(times_power(times_power(offsets**2, shift), shift))
    total = middle + more
    merged = Moments(total, (middle - total) + more, square, mean_power, power)
    offset = offset_of(own.mean, own.residual, own.mean_power) - more
    rest = times_power(rest, own.power - power) + times_power(offset, shift)
    return rest, merged


def _merge_squares(names: Names, rest: Array, own: Moments) -> tuple[Array, Moments]:
    """Do what `_merge` does for RMS norm, whose means are 0."""
    square, powers = _gathered(names, (own.square, own.power))
    power = powers.max(0)
    square = _mean(times_power(times_power(square, powers - power), powers - power))
    return times_power(rest, own.power - power), own._replace(square=square, power=power)


def _gathered(names: Names, of_rows: Sequence[Array]) -> list[Array]:
    """Return each array as all devices have it, stacked along a new first axis: one collective."""
    dtype = of_rows[0].dtype
    stacked = jnp.stack([each.astype(dtype) for each in of_rows])
    gathered = jax.lax.all_gather(stacked, names)
    return [gathered[:, at].astype(each.dtype) for at, each in enumerate(of_rows)]


def _mean(of_parts: Array) -> Array:
    """Return the mean along the first axis, added by halves: XLA may add a sum in any order.

    But a sum of two has one order. And without it XLA would compute the mean for each element of x.
    """
    v = of_parts
    while len(v) > 2:
        half = len(v) // 2
        v = jnp.concatenate([v[:half] + v[half : 2 * half], v[2 * half :]])
    return v.sum(0) / len(of_parts)


def _merge_means(
    names: Names, means: Sequence[Array], power: Array | None
) -> tuple[list[Array], Any]:
    """Merge the means of all devices' parts, each scaled by 2**-power, or not scaled."""
    if power is None:
        return [_mean(each) for each in _gathered(names, means)], None
    *parts, powers = _gathered(names, (*means, power))
    power = powers.max(0)
    return [_mean(times_power(each, powers - power)) for each in parts], power


# ---- backward


def backward(*operands: Array, **params: Any) -> list[Array]:
    """Compute backward_p, on any number of devices."""
    definition, dims = params["definition"], operands[0].ndim
    if definition.across:
        return _backward_of_parts((), *operands, **params)
    gradients = 1 + params["has_dtotal"]
    axes = Axes(
        operands=[
            *[tuple(range(dims))] * (gradients + definition.has_gate),
            *definition.forward_axes(dims, with_statistics=True),
            *[definition.of_parameters] * (params["has_weight"] + params["has_bias"]),
        ],
        results=definition.backward_axes(dims, params["need"]),
        x=gradients,
    )

    def whole(*operands: Array) -> list[Array]:
        results: list[Array] = local_backward_p.bind(*operands, **params)
        return results

    def on_each(own: MeshAxes) -> Callable[..., Any]:
        across, down = own.over(definition.axes), own.over(definition.summed(dims))
        if not across and not (down and any(params["need"][1:3])):
            return lambda *operands: tuple(whole(*operands))
        of_parts = params | {"definition": definition._replace(across=across)}
        return lambda *operands: tuple(_backward_of_parts(down, *operands, **of_parts))

    return _partitioned(whole, on_each, axes, operands)


def _backward_of_parts(
    down: Names,
    *operands: Array,
    definition: Definition,
    has_dtotal: bool,
    need: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    parameter_type: Any,
) -> list[Array]:
    """Return the gradients where other devices have parts of the rows, or other rows."""
    count = 1 + has_dtotal
    dy, dtotal = spaced(operands[:count], (True, has_dtotal))
    saved = saved_in(operands[count:], definition, has_weight=has_weight, has_bias=has_bias)
    # In the compute type until the devices' sums are added up, so that they are rounded once.
    sum_type = compute_type(saved.x.dtype)
    weight, bias = (
        None if each is None else each.astype(sum_type) for each in (saved.weight, saved.bias)
    )
    saved = saved._replace(weight=weight, bias=bias)
    if definition.across:
        rows = derivatives.rows_from(saved, definition)
        x_power = -formulas.exponent(rows.rstd, ())
        results = formulas.gradients(
            dy,
            rows.xhat,
            times_power(rows.rstd, x_power),
            saved,
            rows.factors,
            definition,
            x_power=x_power,
            dtotal=dtotal,
            need=need,
            parameter_type=sum_type,
            merged=functools.partial(_merge_means, definition.across),
        )
    else:
        results = local_backward_p.bind(
            *present(dy, dtotal),
            *saved.operands(),
            definition=definition,
            has_dtotal=has_dtotal,
            need=need,
            has_weight=has_weight,
            has_bias=has_bias,
            parameter_type=sum_type,
        )
    dx, *of_parameters, dgate = spaced(results, need)
    sums = present(*of_parameters)
    if sums and down:
        # One collective for both. Not gathered: that would bring every device's sums to each.
        sums = list(jax.lax.psum(jnp.stack(sums), down))
    return [*present(dx), *(each.astype(parameter_type) for each in sums), *present(dgate)]
