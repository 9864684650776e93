"""Calls of `layernorm.jax`, as in calls_numpy.py."""

import jax
import numpy as np
from as_numpy_jax import AsNumpy, to_jax
from jax_renamed import enable_x64
from layouts import Array
from soak_case import Case

import layernorm.jax as ours

COMPILED = AsNumpy()


def results(
    case: Case, x: Array, dy: Array, weight: Array | None, bias: Array | None
) -> dict[str, Array | None]:
    """`jit`: one program, with statistics and every gradient; `eager`: the functions alone."""
    if case.way == "jit":
        return COMPILED.forward_and_backward(case, x, dy, weight, bias)
    with enable_x64(True):
        given = {"x": x, "weight": weight, "bias": bias}
        given = {name: to_jax(array) for name, array in given.items() if array is not None}
        wanted = {name: each for name, each in given.items() if case.needs(f"d{name}")}
        fixed = {name: each for name, each in given.items() if name not in wanted}

        def call(wanted):
            return getattr(ours, case.kind)(**wanted, **fixed, **case.options)

        if not wanted:
            return {"y": np.asarray(call({}))}
        y, transposed = jax.vjp(call, wanted)
        (gradients,) = transposed(to_jax(dy))
        found = {"y": y} | {f"d{name}": each for name, each in gradients.items()}
        return {name: np.asarray(each) for name, each in found.items()}
