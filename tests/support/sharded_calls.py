"""A script for a process with 8 devices: prints results and collectives of sharded calls."""

import collections
import functools
import gc
import importlib.util
import json
import math
import re

import jax
import jax.export
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
    # Weight and bias of shape (8, 1, 64), for each of the first axis.
    "adaptive, varying axis": (("rows",), ("rows",)),
    "adaptive, varying axis, parameters whole": (("rows",), ()),
    "adaptive, rows": ((None, "rows"), ()),
    "adaptive, normalized axis": ((None, None, "cols"), (None, None, "cols")),
    "adaptive, varying and normalized axis": (("rows", None, "cols"), ("rows", None, "cols")),
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
    x, weight, bias, dy = arrays_of(8, 16, 64)
    x[:, 0] = 1 + x[:, 0] * 1e-3  # far from zero
    x[:, 1] = np.linspace(-5, 5, 64) + x[:, 1]  # a shard's mean is far from the row's
    x[0, 2], x[1, 2] = x[0, 2] * 1e37, 3.0  # large; constant
    dy[0, 2], dy[2, 2] = dy[0, 2] * 1e37, dy[2, 2] * 1e37  # so dx is ordinary; large
    up = dy[:, 3:] > 0.5
    x[:, 3:], dy[:, 3:] = np.where(up, 1.3, -0.7), np.where(up, 1, -1) / weight  # g along xhat
    return [jnp.asarray(each, dtype) for each in (x, weight, bias, dy)]


def arrays_for(name: str, dtype: str) -> list[jax.Array]:
    """Return the arrays of a call with this sharding."""
    x, weight, bias, dy = rows_of_every_kind(dtype)
    if name.startswith("adaptive"):
        factors = jnp.arange(1, 9, dtype=dtype)[:, None, None]
        weight, bias = weight * factors, bias * factors
    return [x, weight, bias, dy]


def report(what: str, **found) -> None:
    print(json.dumps({"what": what, **found}))


# The last: whether the axes of the mesh are named, within shard_map.
CALLS = [
    *[
        ("layer_norm", "bfloat16" if " and " in name else "float32", name, False)
        for name in SHARDINGS
        if name != "normalized axis over both"
    ],
    ("rms_norm", "float32", "normalized axis over both", False),
    ("rms_norm", "float32", "adaptive, varying and normalized axis", False),
    ("layer_norm", "bfloat16", "rows", False),
    ("layer_norm", "bfloat16", "adaptive, rows", False),
    ("layer_norm", "float32", "rows and normalized axis", True),
    ("rms_norm", "float32", "normalized axis over both", True),
    ("rms_norm", "bfloat16", "adaptive, varying and normalized axis", True),
]


def with_named_axes(function, x_spec, *specs):
    """Map a norm over the mesh, with the names of the axes that shard x's last axis."""
    function = functools.partial(function, axis_name=x_spec[-1])
    specs = [PartitionSpec(*each) for each in (x_spec, *specs)]
    return jax.shard_map(function, mesh=mesh(), in_specs=tuple(specs), out_specs=specs[0])


def call(kind: str, dtype: str, name: str, is_named: bool) -> None:
    spec, parameter_spec = SHARDINGS[name]
    specs = (spec, parameter_spec, parameter_spec, spec)
    x, *parameters, dy = map(placed, arrays_for(name, dtype), specs)
    parameters = parameters[: 2 if kind == "layer_norm" else 1]
    function = getattr(ours, kind)
    if is_named:
        function = with_named_axes(function, spec, *[parameter_spec] * len(parameters))

    def derivative(dy, *arrays):
        return jax.vjp(function, *arrays)[1](dy)

    forward = jax.jit(function).lower(x, *parameters).compile()
    backward = jax.jit(derivative).lower(dy, x, *parameters).compile()
    y, found = forward(x, *parameters), backward(dy, x, *parameters)
    rows = math.prod(y.sharding.shard_shape(y.shape)[:2])
    report(
        name,
        kind=kind,
        dtype=dtype,
        forward=collectives(forward),
        backward=collectives(backward),
        gathered=[numbers_gathered(each, rows) for each in (forward, backward)],
        is_named=is_named,
        kept=[each.sharding.is_equivalent_to(x.sharding, 3) for each in (y, found[0])],
        y=np.asarray(y, np.float64).tolist(),
        gradients=[np.asarray(each, np.float64).tolist() for each in found],
    )


def of_sum(kind, x, residual, *parameters):
    return getattr(ours, kind)(x, *parameters, residual=residual)


def gradients_of_sum(kind, cotangents, *arrays):
    return jax.vjp(functools.partial(of_sum, kind), *arrays)[1](cotangents)


def with_residual(name: str, dtype: str) -> list[jax.Array]:
    """Return x, residual, weight, bias, dy and dtotal of a call with this sharding."""
    x, weight, bias, dy = arrays_for(name, dtype)
    return [x, jnp.roll(x, 1, 1), weight, bias, dy, jnp.roll(dy, 1, 0)]


RESIDUAL_CALLS = [
    ("layer_norm", "float32", "rows"),
    ("layer_norm", "bfloat16", "rows and normalized axis"),
    ("rms_norm", "float32", "adaptive, varying and normalized axis"),
    ("layer_norm", "bfloat16", "adaptive, rows"),
]


def call_with_residual(kind: str, dtype: str, name: str, residual_is_whole: bool) -> None:
    spec, parameter_spec = SHARDINGS[name]
    residual_spec = () if residual_is_whole else spec
    specs = (spec, residual_spec, parameter_spec, parameter_spec, spec, spec)
    given = [placed(*each) for each in zip(with_residual(name, dtype), specs, strict=True)]
    arrays = given[: 4 if kind == "layer_norm" else 3]
    forward = jax.jit(of_sum, static_argnums=0).lower(kind, *arrays).compile()
    backward = jax.jit(gradients_of_sum, static_argnums=0)
    backward = backward.lower(kind, tuple(given[4:]), *arrays).compile()
    results = [*forward(*arrays), *backward(tuple(given[4:]), *arrays)]
    report(
        name,
        kind=kind,
        dtype=dtype,
        forward=collectives(forward),
        backward=collectives(backward),
        kept=[each.sharding.is_equivalent_to(given[0].sharding, 3) for each in results[:3]],
        results=[np.asarray(each, np.float64).tolist() for each in results],
    )


def gated(kind, gating, x, gate, *parameters):
    return getattr(ours, kind)(x, *parameters, gate=gate, **dict(gating))


def gradients_of_gated(kind, gating, dy, *arrays):
    return jax.vjp(functools.partial(gated, kind, gating), *arrays)[1](dy)


def with_gate(name: str, dtype: str) -> list[jax.Array]:
    """Return x, gate, weight, bias and dy of a call with this sharding."""
    x, weight, bias, dy = arrays_for(name, dtype)
    return [x, 2 * jnp.roll(dy, 1, 1).clip(-4, 4), weight, bias, dy]


AFTER, BEFORE = (
    {"activation": activation, "norm_before_gate": norm_before_gate}
    for activation, norm_before_gate in (("silu", True), ("sigmoid", False))
)
GATED_CALLS = [
    ("layer_norm", "bfloat16", "rows", BEFORE),
    ("layer_norm", "float32", "normalized axis", BEFORE),
    ("layer_norm", "bfloat16", "rows and normalized axis", AFTER),
    ("rms_norm", "float32", "adaptive, varying and normalized axis", AFTER),
]


def call_with_gate(kind: str, dtype: str, name: str, gating: dict) -> None:
    spec, parameter_spec = SHARDINGS[name]
    specs = (spec, () if name == "rows" else spec, parameter_spec, parameter_spec, spec)
    *given, dy = [placed(*each) for each in zip(with_gate(name, dtype), specs, strict=True)]
    arrays = given[: 4 if kind == "layer_norm" else 3]
    static = (kind, tuple(gating.items()))
    forward = jax.jit(gated, static_argnums=(0, 1)).lower(*static, *arrays).compile()
    backward = jax.jit(gradients_of_gated, static_argnums=(0, 1))
    backward = backward.lower(*static, dy, *arrays).compile()
    results = [forward(*arrays), *backward(dy, *arrays)]
    report(
        name,
        kind=kind,
        dtype=dtype,
        gating=gating,
        forward=collectives(forward),
        backward=collectives(backward),
        kept=[each.sharding.is_equivalent_to(arrays[0].sharding, 3) for each in results[:3]],
        results=[np.asarray(each, np.float64).tolist() for each in results],
    )


QUANTIZED_SHARDINGS = (("rows",), (None, "rows", "cols"))


def call_quantized(spec: tuple, scale: float | None) -> None:
    """Quantize, and compare with one device; row [0, 0] has a NaN in the second half."""
    x, weight, bias, _ = arrays_of(8, 16, 64)
    x[0, 0, 40] = np.nan
    function = functools.partial(ours.quantized_layer_norm, scale=scale)
    compiled = jax.jit(function).lower(placed(x, spec), weight, bias).compile()
    results = [jax.tree.leaves(compiled(placed(x, spec), weight, bias))]
    results.append(jax.tree.leaves(function(x, weight, bias)))
    sharding = NamedSharding(mesh(), PartitionSpec(*spec))
    (q, *scales), (expected, *expected_scales) = results
    report(
        "quantized",
        collectives=collectives(compiled),
        kept=q.sharding.is_equivalent_to(sharding, 3),
        steps=np.abs(np.asarray(q, int) - np.asarray(expected, int)).max().item(),
        nan=[np.argwhere(np.isnan(each)).tolist() for each in scales],
        scales=[
            float(np.nanmax(np.abs(np.asarray(a) / np.asarray(b) - 1)))
            for a, b in zip(scales, expected_scales, strict=True)
        ],
    )


def quantized_within_shard_map_and_with_explicit_axes() -> None:
    x, weight, bias, _ = arrays_of(8, 64)
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    differences = []
    for scale in (None, np.float32(0.03)):

        def function(x, weight, bias, scale=scale):
            results = ours.quantized_layer_norm(x, weight, bias, scale=scale)
            return results if scale is None else (results, jnp.ones((len(x), 1)))

        expected = function(x, weight, bias)
        mapped = jax.shard_map(
            function, mesh=mesh(), in_specs=(rows, whole, whole), out_specs=(rows, rows)
        )
        differences.append(largest_difference(jax.jit(mapped)(x, weight, bias), expected))
        kinds = (jax.sharding.AxisType.Explicit,) * 2
        with set_mesh(jax.make_mesh((4, 2), ("rows", "cols"), axis_types=kinds)):
            found = jax.jit(function)(jax.device_put(x, rows), weight, bias)
            assert found[0].sharding.spec[0] == "rows"
            differences.append(largest_difference(found, expected))
    report("quantized in shard_map, explicit", differences=differences)


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


def weighted_sines(x, weight, bias):
    return jnp.sum(jnp.sin(ours.layer_norm(x, weight, bias)) * jnp.cos(x))


def parameters_of_every_kind() -> list[tuple[np.ndarray, np.ndarray]]:
    """For x of shape (8, 16, 64): weight and bias that vary along each axis, alike or not."""
    rng = np.random.default_rng(9)
    shared, adaptive, of_tokens, of_both = (
        rng.normal(0.5, 1, shape).astype(np.float32)
        for shape in ((64,), (8, 1, 64), (16, 64), (8, 16, 64))
    )
    return [
        *((shared, shared), (adaptive, adaptive), (of_tokens, of_tokens), (of_both, of_both)),
        *((adaptive, shared), (shared, of_tokens), (adaptive, of_tokens)),
    ]


def explicit_axes() -> None:
    """On a mesh with explicit axes, which are part of an array's type."""
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    x, *_ = arrays_of(8, 16, 64)
    # JAX before 0.9.2 compiles no collectives of ours on such a mesh.
    with_collectives = jax.__version_info__ >= (0, 9, 2)
    gradients = jax.grad(weighted_sines, argnums=(0, 1, 2) if with_collectives else 0)
    # One program for all parameters: each program takes long to compile.
    of_each = jax.jit(lambda x, every: [gradients(x, *each) for each in every])
    every = parameters_of_every_kind()
    few = [every[0], every[-1]] if with_collectives else []  # shared, and along other axes
    differences = []
    for spec, parameters in (
        *((("rows",), every), ((None, "rows"), every)),
        *(((None, None, "cols"), few), (("rows", None, "cols"), few)),
    ):
        expected = of_each(x, parameters)
        with set_mesh(jax.make_mesh((4, 2), ("rows", "cols"), axis_types=kinds)):
            found = of_each(jax.device_put(x, PartitionSpec(*spec)), parameters)
        for got, right in zip(found, expected, strict=True):
            assert tuple(jax.tree.leaves(got)[0].sharding.spec)[: len(spec)] == spec
            differences.append(relative_difference(got, right))
    report("explicit", difference=max(differences))


def parameters_within_shard_map() -> None:
    """x sharded along its first two axes, and parameters along those of them that they have."""
    x, *_ = arrays_of(8, 16, 64)
    names = ("rows", "cols", None)

    def placement(array) -> PartitionSpec:
        pairs = zip(names[3 - array.ndim :], array.shape, strict=True)
        return PartitionSpec(*(name if size > 1 else None for name, size in pairs))

    def summed(*arrays):
        return jax.lax.psum(weighted_sines(*arrays), ("rows", "cols"))

    def mapped(*arrays):
        specs = tuple(map(placement, arrays))
        return jax.shard_map(summed, mesh=mesh(), in_specs=specs, out_specs=PartitionSpec())(
            *arrays
        )

    def gradients_of(loss):
        gradients = jax.grad(loss, argnums=(0, 1, 2))
        return jax.jit(lambda every: [gradients(x, *each) for each in every])

    every = parameters_of_every_kind()
    pairs = zip(gradients_of(mapped)(every), gradients_of(weighted_sines)(every), strict=True)
    report("parameters in shard_map", difference=max(relative_difference(*pair) for pair in pairs))


def loss_of_sum(x, residual, weight, bias):
    y, total = ours.layer_norm(x, weight, bias, residual=residual)
    return jnp.sum(jnp.sin(y) * jnp.cos(total))


def residual_within_shard_map() -> None:
    """A residual that all devices share, or x: its gradient is the sum over the devices."""
    x, weight, bias, residual = arrays_of(8, 64)
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    derivatives = functools.partial(jax.grad, argnums=(0, 1, 2, 3))

    def summed(*arrays):
        return jax.lax.psum(loss_of_sum(*arrays), "rows")

    def tiled(x, residual, weight, bias):
        x, residual = (jnp.tile(each, (8 // len(each), 1)) for each in (x, residual))
        return loss_of_sum(x, residual, weight, bias)

    differences = []
    for arrays, specs in (
        ((x, residual[:2]), (rows, whole)),
        ((x[:2], residual), (whole, rows)),
        ((x, residual), (rows, rows)),
    ):
        given = (*arrays, weight, bias)
        mapped = jax.shard_map(
            summed, mesh=mesh(), in_specs=(*specs, whole, whole), out_specs=whole
        )
        found, expected = jax.jit(derivatives(mapped))(*given), derivatives(tiled)(*given)
        differences.append(relative_difference(found, expected))
    report("residual in shard_map", difference=max(differences))


def residual_with_explicit_axes() -> None:
    x, weight, bias, residual = arrays_of(8, 64)
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    # See explicit_axes.
    arguments = (0, 1, 2, 3) if jax.__version_info__ >= (0, 9, 2) else (0, 1)
    derivatives = jax.grad(loss_of_sum, argnums=arguments)
    expected = derivatives(x, residual, weight, bias)
    differences = []
    with set_mesh(jax.make_mesh((4, 2), ("rows", "cols"), axis_types=kinds)):
        for of_x, of_residual in (("rows", None), (None, "rows"), ("rows", "rows")):
            placements = map(PartitionSpec, (of_x, of_residual))
            given = map(jax.device_put, (x, residual), placements)
            found = jax.jit(derivatives)(*given, weight, bias)
            assert [each.sharding.spec[0] for each in found[:2]] == [of_x, of_residual]
            differences.append(relative_difference(found, expected))
    report("residual, explicit", difference=max(differences))


def loss_of_gated(x, gate, weight, bias):
    return jnp.sum(jnp.sin(ours.layer_norm(x, weight, bias, gate=gate)) * jnp.cos(x))


def gate_within_shard_map_and_with_explicit_axes() -> None:
    """A gate that all devices share: its gradient is the sum over the devices."""
    x, weight, bias, gate = arrays_of(8, 64)
    rows, whole = PartitionSpec("rows"), PartitionSpec()

    def summed(*arrays):
        return jax.lax.psum(loss_of_gated(*arrays), "rows")

    def tiled(x, gate, *parameters):
        return loss_of_gated(x, jnp.tile(gate, (4, 1)), *parameters)

    derivatives = functools.partial(jax.grad, argnums=(0, 1, 2, 3))
    mapped = jax.shard_map(
        summed, mesh=mesh(), in_specs=(rows, whole, whole, whole), out_specs=whole
    )
    given = (x, gate[:2], weight, bias)
    differences = [
        relative_difference(jax.jit(derivatives(mapped))(*given), derivatives(tiled)(*given))
    ]
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    # See explicit_axes.
    arguments = (0, 1, 2, 3) if jax.__version_info__ >= (0, 9, 2) else (0, 1)
    gradients = jax.grad(loss_of_gated, argnums=arguments)
    expected = gradients(x, gate, weight, bias)
    with set_mesh(jax.make_mesh((4, 2), ("rows", "cols"), axis_types=kinds)):
        given = jax.device_put(x, rows), jax.device_put(gate, whole)
        found = jax.jit(gradients)(*given, weight, bias)
        assert [each.sharding.spec[0] for each in found[:2]] == ["rows", None]
        differences.append(relative_difference(found, expected))
    report("gate in shard_map, explicit", difference=max(differences))


def largest_difference(found, expected) -> float:
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def relative_difference(found, expected) -> float:
    """Return the largest difference, relative to the largest number of its array."""
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    return max(largest_difference(a, b) / float(jnp.abs(b).max()) for a, b in pairs)


def within_pmap() -> None:
    """x, the parameters, or both differ by device; and a batch of parameters on each device."""
    arrays = [np.stack(each) for each in zip(*(arrays_of(4, 16) for _ in range(8)), strict=True)]
    arrays = [each * np.arange(1, 9).reshape(8, *[1] * (each.ndim - 1)) for each in arrays]
    differences = []
    for kind in ("layer_norm", "rms_norm"):
        function = functools.partial(gradients, kind)
        for axes in ((0, None, None, 0), (None, 0, 0, None), (0, 0, 0, 0)):
            given = [a if axis == 0 else a[0] for a, axis in zip(arrays, axes, strict=True)]
            one_by_one = [
                function(*(a[at] if axis == 0 else a for a, axis in zip(given, axes, strict=True)))
                for at in range(8)
            ]
            expected = jax.tree.map(lambda *each: np.stack(each), *one_by_one)
            for mapped in (jax.pmap, jax.vmap):
                differences.append(
                    largest_difference(mapped(function, in_axes=axes)(*given), expected)
                )
    report("pmap", differences=differences)


def batched_parameters_within_shard_map() -> None:
    x, _, _, dy = arrays_of(8, 16)
    weights, biases = (np.stack([a, a * 2, a - 1]) for a in arrays_of(8, 16)[1:3])
    rows, whole = PartitionSpec("rows"), PartitionSpec()

    def loss(x, weights, biases, dy):
        many = jax.vmap(lambda w, b: ours.layer_norm(x, w, b))(weights, biases)
        return jnp.sum(jnp.sin(many) * dy)

    def summed(*arrays):
        return jax.lax.psum(loss(*arrays), "rows")

    mapped = jax.shard_map(
        summed, mesh=mesh(), in_specs=(rows, whole, whole, rows), out_specs=whole
    )
    arguments = (x, weights, biases, dy)
    found = jax.jit(jax.grad(mapped, argnums=(0, 1, 2)))(*arguments)
    expected = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
    report("batched parameters", difference=largest_difference(found, expected))


def bits_of_rows() -> None:
    """Count the parts of y and dx that differ with the device, the run, or the number of rows."""
    differences = []
    many, weight, bias, many_dy = arrays_of(2049, 256)
    for kind, names, is_named, few in (
        ("layer_norm", "cols", False, 2),
        ("rms_norm", ("rows", "cols"), True, 257),
    ):
        spec = (None, names)
        parameters = (weight, bias)[: 2 if kind == "layer_norm" else 1]
        function = getattr(ours, kind)
        if is_named:
            function = with_named_axes(function, spec, *[(names,)] * len(parameters))

        # The bits are judged, so the loops are compiled as for users: see test_jax_sharding.py.
        @functools.partial(jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True})
        def both(dy, *arrays, function=function):
            y, transposed = jax.vjp(function, *arrays)
            return y, transposed(dy)[0]

        expected = None
        for count in (2049, 2049, few):
            own = (placed(each, (names,)) for each in parameters)
            found = both(placed(many_dy[:count], spec), placed(many[:count], spec), *own)
            expected = expected or [np.asarray(each) for each in found]
            differences += [
                np.asarray(each.data).tobytes() != whole[:count][each.index].tobytes()
                for one, whole in zip(found, expected, strict=True)
                for each in one.addressable_shards
            ]
    report("bits", compared=len(differences), differences=sum(differences))


def residual_and_gate_with_named_axes() -> None:
    """Values, gradients, tangents and second derivatives; arrays that devices share; vmap."""
    x, weight, bias, residual = arrays_of(8, 64)
    gate = np.roll(residual, 1, 0)

    def loss(x, residual, gate, weight, bias, axis_name=None):
        options = {"gate": gate, "axis_name": axis_name}
        y, total = ours.layer_norm(x, weight, bias, residual=residual, **options)
        normed = ours.rms_norm(total, gate=gate, norm_before_gate=False, axis_name=axis_name)
        return jnp.sum(jnp.sin(y) * jnp.cos(total) + jnp.sin(normed))

    def derivatives(function):
        def all_of_them(*arrays):
            gradient = jax.grad(function, tuple(range(len(arrays))))
            return jax.jvp(gradient, arrays, tuple(map(jnp.cos, arrays)))

        return jax.jit(all_of_them)

    differences = []
    arrays = (x, residual, gate, weight, bias)
    expected = derivatives(loss)(*arrays)
    for names, is_checked in (("cols", True), (("rows", "cols"), False)):

        def summed(*arrays, names=names):
            return jax.lax.psum(loss(*arrays, axis_name=names), names)

        of_rows, of_parameters = PartitionSpec(None, names), PartitionSpec(names)
        specs = (of_rows, of_rows, of_rows, of_parameters, of_parameters)
        mapped = jax.shard_map(
            summed, mesh=mesh(), in_specs=specs, out_specs=PartitionSpec(), check_vma=is_checked
        )
        differences.append(relative_difference(derivatives(mapped)(*arrays), expected))

    def of_half(x):  # all devices have this part of x
        return jax.lax.psum(jnp.sin(ours.rms_norm(x, axis_name="cols")).sum(), "cols")

    def of_copies(x):
        return jnp.sin(ours.rms_norm(jnp.tile(x, (1, 2)))).sum()

    whole = PartitionSpec()
    mapped = jax.shard_map(of_half, mesh=mesh(), in_specs=whole, out_specs=whole)
    found, expected = (jax.jit(jax.grad(each))(x[:, :32]) for each in (mapped, of_copies))
    differences.append(relative_difference(found, expected))
    function = with_named_axes(ours.rms_norm, (None, "cols"), ("cols",))
    batches = (np.stack([x, residual]), np.stack([weight, bias]))
    expected = jax.vmap(ours.rms_norm)(*batches)
    differences.append(relative_difference(jax.jit(jax.vmap(function))(*batches), expected))
    report("named axes", differences=differences)


def modules_of_flax_with_named_axes() -> None:
    """Compare with the same modules on one device; count the collectives of the forward."""
    if importlib.util.find_spec("flax") is None:
        return
    from layernorm.flax import linen

    x, scale, bias, residual = arrays_of(8, 64)
    differences, counts = [], []
    for module, names in ((linen.LayerNorm, ("scale", "bias")), (linen.RMSNorm, ("scale",))):
        arrays = (x, residual, *(scale, bias)[: len(names)])

        def both(x, residual, *own, module=module, names=names, **options):
            parameters = {"params": dict(zip(names, own, strict=True))}
            return module(**options).apply(parameters, x, residual=residual)

        specs = (PartitionSpec("rows", "cols"),) * 2 + (PartitionSpec("cols"),) * len(names)
        mapped = jax.shard_map(
            functools.partial(both, axis_name="cols"),
            mesh=mesh(),
            in_specs=specs,
            out_specs=specs[:2],
        )
        compiled = jax.jit(mapped).lower(*arrays).compile()
        counts.append(collectives(compiled))
        differences.append(relative_difference(compiled(*arrays), both(*arrays)))
    report("flax", differences=differences, collectives=counts)


def exported() -> None:
    """Programs for several devices: the formula; within shard_map the kernels."""
    x, weight, bias, dy = arrays_of(8, 64)
    rows, whole = PartitionSpec("rows"), PartitionSpec()
    names = ("layernorm_forward", "layernorm_backward")
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
    function = functools.partial(gradients, "layer_norm")
    placements = [NamedSharding(mesh(), each) for each in (rows, whole, whole, rows)]
    given = [jax.device_put(*each) for each in zip((x, weight, bias, dy), placements, strict=True)]

    def again(function, checks):
        compiled = jax.jit(function, in_shardings=placements)
        program = jax.export.export(compiled, disabled_checks=checks)(*given)
        restored = jax.export.deserialize(program.serialize())
        return restored, jax.jit(restored.call)(*given)

    mapped = jax.shard_map(
        lambda *a: ours.layer_norm(*a[:3]),
        mesh=mesh(),
        in_specs=(rows, whole, whole, rows),
        out_specs=rows,
    )
    shared, found = again(function, [])
    own, y = again(mapped, checks)
    report(
        "exported",
        differences=[
            largest_difference(found, function(x, weight, bias, dy)),
            largest_difference(y, ours.layer_norm(x, weight, bias)),
        ],
        kernels=["layernorm_forward" in each.mlir_module() for each in (shared, own)],
    )


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    gc.disable()  # it would search what JAX has traced again and again
    for each in CALLS:
        call(*each)
    for each in RESIDUAL_CALLS:
        call_with_residual(*each, residual_is_whole=each[2] == "rows")
    for each in GATED_CALLS:
        call_with_gate(*each)
    for spec in QUANTIZED_SHARDINGS:
        for scale in (None, 0.02):
            call_quantized(spec, scale)
    quantized_within_shard_map_and_with_explicit_axes()
    rows_that_do_not_divide()
    within_shard_map()
    explicit_axes()
    parameters_within_shard_map()
    within_pmap()
    batched_parameters_within_shard_map()
    residual_within_shard_map()
    residual_with_explicit_axes()
    gate_within_shard_map_and_with_explicit_axes()
    bits_of_rows()
    residual_and_gate_with_named_axes()
    exported()
    modules_of_flax_with_named_axes()
