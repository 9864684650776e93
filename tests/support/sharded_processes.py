"""One of two processes that share the devices of a mesh: compares split rows with whole ones.

Arguments: the port of the coordinator on 127.0.0.1, this process's index, its number of devices.
"""

import functools
import json
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import layernorm.jax as ours

port, index, devices = map(int, sys.argv[1:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", devices)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)

MESH = jax.make_mesh((2 * devices,), ("cols",))
ROWS, PARAMETER = PartitionSpec(None, "cols"), PartitionSpec("cols")


def placed(array: np.ndarray, spec: PartitionSpec) -> jax.Array:
    """Give each process its parts of an array that all of them have."""
    return jax.make_array_from_callback(
        array.shape, NamedSharding(MESH, spec), lambda index: array[index]
    )


def value_and_gradients(function, dy, *arrays):
    y, transposed = jax.vjp(function, *arrays)
    return [y, *transposed(dy)]


def largest_difference(found: jax.Array, expected: jax.Array) -> float:
    """Return that of this process's parts, relative to the largest number of the array."""
    whole = np.asarray(expected)
    parts = ((np.asarray(each.data), whole[each.index]) for each in found.addressable_shards)
    return max(float(np.abs(a - b).max()) for a, b in parts) / float(np.abs(whole).max())


rng = np.random.default_rng(8)
x, dy = (rng.normal(0.5, 1, (8, 64)).astype(np.float32) for _ in range(2))
weight, bias = (rng.normal(0.5, 1, 64).astype(np.float32) for _ in range(2))
named = jax.shard_map(
    functools.partial(ours.layer_norm, axis_name="cols"),
    mesh=MESH,
    in_specs=(ROWS, PARAMETER, PARAMETER),
    out_specs=ROWS,
)
specs = (ROWS, ROWS, PARAMETER, PARAMETER)
given = list(map(placed, (dy, x, weight, bias), specs))
expected = value_and_gradients(ours.layer_norm, dy, x, weight, bias)
differences = []
for function in (ours.layer_norm, named):
    found = jax.jit(functools.partial(value_and_gradients, function))(*given)
    differences += map(largest_difference, found, expected)
print(json.dumps({"devices": len(jax.devices()), "differences": differences}))
