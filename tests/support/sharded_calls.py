"""A script for a process with 8 devices: prints results and collectives of sharded calls."""

import collections
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax_renamed import set_mesh

import layernorm.jax as ours

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
SHARDINGS = {
    "rows": (("rows",), ()),
    "two kept axes": (("rows", "cols"), ()),
    "rows over both": ((("rows", "cols"),), ()),
    "normalized axis": ((None, None, "cols"), ("cols",)),
    "rows and normalized axis": (("rows", None, "cols"), ("cols",)),
    "normalized axis over both": ((None, None, ("rows", "cols")), (("rows", "cols"),)),
}


GATHERED = re.compile(r" = f32\[([\d,]+)\]\S* all-gather(?:-start)?\(")


def numbers_gathered(compiled, rows: int) -> list[float]:
    """Count the numbers that each all-gather brings for one of the rows and one part of it."""
    shapes = [tuple(map(int, each.split(","))) for each in GATHERED.findall(compiled.as_text())]
    return [math.prod(shape[1:]) / rows for shape in shapes]


def collectives(compiled) -> dict[str, int]:
    return dict(collections.Counter(COLLECTIVE.findall(compiled.as_text())))


def gradients(kind, x, weight, bias, dy):
    function = getattr(ours, kind)
    arguments = (x, weight, bias)[: 3 if kind == "layer_norm" else 2]
    return jax.vjp(function, *arguments)[1](dy)


@functools.cache
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "cols"))


def placed(array, spec):
    return jax.device_put(array, NamedSharding(mesh(), PartitionSpec(*spec)))


def arrays_of(*shape: int) -> list[np.ndarray]:
    """Make x, weight, bias and dy, the same in every process."""
    rng = np.random.default_rng(8)
    sizes = (shape, shape[-1:], shape[-1:], shape)
    return [rng.normal(0.5, 1, size).astype(np.float32) for size in sizes]


def rows_of_every_kind(dtype: str) -> list[jax.Array]:
    x, *others = arrays_of(8, 16, 64)
    x[:, 0] = 1 + x[:, 0] * 1e-3  # far from zero
    x[:, 1] = np.linspace(-5, 5, 64) + x[:, 1]  # a shard's mean is far from the row's
    x[0, 2], x[1, 2] = x[0, 2] * 1e18, 3.0  # large; constant
    return [jnp.asarray(each, dtype) for each in (x, *others)]


def report(what: str, **found) -> None:
    print(json.dumps({"what": what, **found}))


CALLS = [
    *[("layer_norm", "float32", name) for name in SHARDINGS],
    ("rms_norm", "float32", "rows and normalized axis"),
    ("rms_norm", "float32", "normalized axis over both"),
    ("layer_norm", "bfloat16", "rows"),
    ("layer_norm", "bfloat16", "rows and normalized axis"),
]


def call(kind: str, dtype: str, name: str) -> None:
    spec, parameter_spec = SHARDINGS[name]
    specs = (spec, parameter_spec, parameter_spec, spec)
    given = [placed(*each) for each in zip(rows_of_every_kind(dtype), specs, strict=True)]
    parameters = given[1:3] if kind == "layer_norm" else given[1:2]
    forward = jax.jit(getattr(ours, kind)).lower(given[0], *parameters).compile()
    backward = jax.jit(gradients, static_argnums=0).lower(kind, *given).compile()
    y, found = forward(given[0], *parameters), backward(*given)
    report(
        name,
        kind=kind,
        dtype=dtype,
        forward=collectives(forward),
        backward=collectives(backward),
        gathered=numbers_gathered(forward, math.prod(y.sharding.shard_shape(y.shape)[:2])),
        kept=[each.sharding.is_equivalent_to(given[0].sharding, 3) for each in (y, found[0])],
        y=np.asarray(y, np.float64).tolist(),
        gradients=[np.asarray(each, np.float64).tolist() for each in found],
    )


def rows_that_do_not_divide() -> None:
    """An intermediate array whose rows do not divide evenly among the devices."""
    x, weight, bias, _ = arrays_of(7, 64)
    x = placed(x, ())

    @jax.jit
    def function(x, weight, bias):
        inner = jax.lax.with_sharding_constraint(
            x * 2, NamedSharding(mesh(), PartitionSpec("rows"))
        )
        return jax.grad(lambda w: jnp.sum(jnp.sin(ours.layer_norm(inner, w, bias))))(weight)

    expected = jax.grad(lambda w: jnp.sum(jnp.sin(ours.layer_norm(x * 2, w, bias))))(weight)
    report("uneven", difference=float(jnp.abs(function(x, weight, bias) - expected).max()))


def within_shard_map() -> None:
    x, weight, bias, dy = arrays_of(8, 64)
    rows = PartitionSpec("rows")

    def loss(x, weight, bias, dy):
        sums = jnp.sum(ours.layer_norm(x, weight, bias) * dy)
        return jax.lax.psum(sums, "rows")

    whole = PartitionSpec()
    mapped = jax.shard_map(loss, mesh=mesh(), in_specs=(rows, whole, whole, rows), out_specs=whole)
    got = jax.jit(jax.grad(mapped, argnums=(0, 1, 2)))(x, weight, bias, dy)
    expected = jax.grad(lambda *a: jnp.sum(ours.layer_norm(*a) * dy), argnums=(0, 1, 2))(
        x, weight, bias
    )
    differences = [float(jnp.abs(a - b).max()) for a, b in zip(got, expected, strict=True)]
    report("shard_map", difference=max(differences))


def explicit_axes() -> None:
    """On a mesh with explicit axes, which are part of an array's type."""
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    x, weight, bias, _ = arrays_of(8, 64)

    def gradients(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(ours.layer_norm(x, weight, bias))))(x)

    expected = gradients(x)
    with set_mesh(jax.make_mesh((4, 2), ("rows", "cols"), axis_types=kinds)):
        got = jax.jit(gradients)(jax.device_put(x, PartitionSpec("rows")))
        assert got.sharding.spec[0] == "rows"
        report("explicit", difference=float(jnp.abs(np.asarray(got) - expected).max()))


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    for each in CALLS:
        call(*each)
    rows_that_do_not_divide()
    within_shard_map()
    explicit_axes()
