"""Calls of `layernorm.tensorflow`, as in calls_numpy.py. Gradients come from a tape."""

import tensorflow as tf
from as_numpy_tensorflow import AsNumpy, to_tensor
from calls import forward, forward_and_backward
from layouts import Array
from soak_case import Case

import layernorm
import layernorm.tensorflow as ours


def set_num_threads(count: int) -> None:
    layernorm.set_num_threads(count)


def results(
    case: Case, x: Array, dy: Array, weight: Array | None, bias: Array | None
) -> dict[str, Array | None]:
    """`eager`, `graph`, `xla`: the contract's adapter; `tape`: only the gradients needed."""
    if case.way == "tape":
        return _with_tape(case, x, dy, weight, bias)
    if not case.need:
        return {"y": forward(AsNumpy(case.way), case, x, weight, bias)[0]}
    return forward_and_backward(AsNumpy(case.way), case, x, dy, weight, bias)


def _with_tape(
    case: Case, x: Array, dy: Array, weight: Array | None, bias: Array | None
) -> dict[str, Array | None]:
    given = {"x": x, "weight": weight, "bias": bias}
    given = {name: to_tensor(array) for name, array in given.items() if array is not None}
    wanted = {name: each for name, each in given.items() if case.needs(f"d{name}")}
    with tf.GradientTape() as tape:
        tape.watch(wanted)
        y = getattr(ours, case.kind)(**given, **case.options)
    gradients = tape.gradient(y, wanted, to_tensor(dy)) if wanted else {}
    found = {"y": y} | {f"d{name}": each for name, each in gradients.items()}
    return {name: each.numpy() for name, each in found.items()}
