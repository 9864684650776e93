"""Calls of `layernorm.keras` on the backend that KERAS_BACKEND names, as in calls_numpy.py."""

from keras_gradients import BACKEND, Call, to_array, to_tensor, with_gradients
from layouts import Array
from soak_case import Case

import layernorm.keras as ours

LAYERS = {"layer_norm": ours.LayerNormalization, "rms_norm": ours.RMSNormalization}


def results(
    case: Case, x: Array, dy: Array, weight: Array | None, bias: Array | None
) -> dict[str, Array | None]:
    assert case.framework == f"keras_{BACKEND}", f"KERAS_BACKEND is {BACKEND}"
    if case.way == "layers":
        return {"y": to_array(_layer(case, weight, bias)(to_tensor(x)))}
    given = {"x": x, "weight": weight, "bias": bias}
    given = {name: to_tensor(each) for name, each in given.items() if each is not None}
    call = Call(getattr(ours, case.kind), tuple(case.options.items()))
    if not case.need:
        return {"y": to_array(call(**given))}
    y, gradients = with_gradients(call, given, to_tensor(dy))
    found = {"y": y} | {f"d{name}": each for name, each in gradients.items()}
    return {name: to_array(each) for name, each in found.items()}


def _layer(case: Case, weight: Array | None, bias: Array | None):
    given = [each for each in (weight, bias) if each is not None]
    options = {"epsilon": case.eps} if case.passes_eps else {}
    if case.kind == "layer_norm":
        options |= {"scale": weight is not None, "center": bias is not None}
    axis = case.axis if isinstance(case.axis, int) else list(case.axis)
    layer = LAYERS[case.kind](axis=axis, dtype=case.dtype, **options)
    layer.build(case.shape)
    layer.set_weights(given)
    return layer
