"""Prints the number of XLA's threads, and digests of the results of a call that uses them."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from cases import Case

import layernorm.jax as ours


def gradients(x, weight, bias, dy):
    y, transposed = jax.vjp(ours.layer_norm, x, weight, bias)
    return (y, *transposed(dy))


x, dy, weight, bias = map(jnp.asarray, Case(cols=768, rows=2503).arrays())
results = jax.jit(gradients)(x, weight, bias, dy)
digests = [hashlib.sha256(np.asarray(each).tobytes()).hexdigest() for each in results]
names = [each.read_text() for each in Path("/proc/self/task").glob("*/comm")]
print(sum("XLAEigen" in name for name in names), *digests)
