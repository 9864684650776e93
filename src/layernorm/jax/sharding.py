"""How the primitives run on arrays that are sharded over devices.

Sharded along kept axes, each device has whole rows: only the sums for dweight and dbias need
communication, along the axes that the parameters do not vary along. Sharded along normalized axes,
each device has a part of every row. The moments of the parts, of equal counts, are gathered and
merged: mean, residual, mean square and two scales, in RMS norm the mean square and its scale. The
backward adds up two sums of each row (RMS norm: one), and those of the rest once more: see
`formulas`. For 8 bits, the largest |y| of the parts are gathered too.
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
    Saved,
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
        names = own.over(definition.axes)
        if not names:
            return lambda *operands: tuple(whole(*operands))
        merged = functools.partial(_merge if definition.centered else _merge_squares, names)

        def largest(of_part: Array) -> Array:
            return jax.lax.all_gather(of_part, names).max(0)

        return lambda *operands: tuple(
            formulas.forward(*operands, **params, merged=merged, largest=largest)
        )

    return _partitioned(whole, on_each, axes, operands)


def _merge(names: Names, rest: Array, own: Moments) -> tuple[Array, Moments]:
    """Merge the moments of all devices' parts; shift and scale this device's part to match."""
    mean, residual, square, mean_powers, powers = _gathered(names, own)
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


def _merge_squares(names: Names, rest: Array, own: Moments) -> tuple[Array, Moments]:
    """Do what `_merge` does for RMS norm, whose means are 0."""
    square, powers = _gathered(names, (own.square, own.power))
    power = powers.max(0)
    square = times_power(times_power(square, powers - power), powers - power).mean(0)
    return times_power(rest, own.power - power), own._replace(square=square, power=power)


def _gathered(names: Names, of_rows: Sequence[Array]) -> list[Array]:
    """Return each array as all devices have it, stacked along a new first axis: one collective."""
    dtype = of_rows[0].dtype
    stacked = jnp.stack([each.astype(dtype) for each in of_rows])
    gathered = jax.lax.all_gather(stacked, names)
    return [gathered[:, at].astype(each.dtype) for at, each in enumerate(of_rows)]


# ---- backward


def backward(*operands: Array, **params: Any) -> list[Array]:
    """Compute backward_p, on any number of devices."""
    definition, dims = params["definition"], operands[0].ndim
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
        return lambda *operands: tuple(_backward_of_parts(across, down, *operands, **params))

    return _partitioned(whole, on_each, axes, operands)


def _backward_of_parts(
    across: Names,
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
    if across:
        results = _gradients_of_parts(across, dy, dtotal, saved, definition, need)
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
        sums = list(jax.lax.psum(jnp.stack(sums), down))  # one collective for both
    return [*present(dx), *(each.astype(parameter_type) for each in sums), *present(dgate)]


def _gradients_of_parts(
    across: Names,
    dy: Array,
    dtotal: Array | None,
    saved: Saved,
    definition: Definition,
    need: tuple[bool, ...],
) -> list[Array]:
    rows = derivatives.rows_from(saved, definition)
    cols = definition.cols(saved.x.shape) * jax.lax.psum(1, across)

    def means(arrays: Sequence[Array], definition: Definition) -> list[Array]:
        sums = jnp.stack([formulas.total(each, definition.axes) for each in arrays])
        return list(jax.lax.psum(sums, across) / cols)

    none = jnp.zeros((), jnp.int32)
    return formulas.gradients(
        dy,
        rows.xhat,
        rows.rstd,
        saved,
        rows.factors,
        definition,
        x_power=none,
        dy_power=none,
        dtotal=dtotal,
        need=need,
        parameter_type=rows.xhat.dtype,
        means=means,
    )
