"""Measures the first call of a norm, and its backward, against float64."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from layernorm.inspection import measure
from layernorm.torch.arguments import machine_epsilon
from layernorm.torch.conversion.converted import (
    PyTorchs,
    Recognized,
)
from layernorm.torch.inspection.calls import (
    FUNCTIONS,
    Call,
    Watched,
    arguments_of,
    parameters_of,
    repeat,
    to_array,
)
from layernorm.torch.layers import LayerNorm, RMSNorm


def judge(watched: Watched) -> None:
    """Measure the first call, on its first samples."""
    call, dy = watched.call, watched.dy
    assert call is not None
    assert dy is not None
    parameters = parameters_of(watched, call)
    meaning = _meaning(watched, call, parameters)
    if meaning is None:
        measure.fill_parameters(watched.entry, *(to_array(each) for each in parameters))
        return
    fits = measure.part_that_fits(tuple(call.x.shape), meaning.axis)
    gate = None if meaning.gate is None else meaning.gate[fits]
    tensors = {"x": meaning.x[fits], "y": call.y[fits], "gate": gate}
    tensors |= {"weight": meaning.weight, "bias": meaning.bias}
    if call.total is None:
        part = call.with_tensors(lambda each: each[fits])
        dx, dweight, dbias = _backward(watched, part, parameters, dy[fits])
        tensors |= {"dy": dy[fits], "dx": dx, "dweight": dweight, "dbias": dbias}
    arrays = {name: to_array(each) for name, each in tensors.items()}
    measure.fill(watched.entry, replace(meaning, **arrays))


def _backward(
    watched: Watched, call: Call, parameters: Sequence[Tensor | None], dy: Tensor
) -> list[Tensor | None]:
    """Return the gradients of x, weight and bias, by the norm's own backward."""
    leaf = call.x.detach().requires_grad_()
    call = call.with_tensors(lambda each: leaf if each is call.x else each)
    wanted: list[Tensor | None] = [leaf, *parameters]
    needed = [each for each in wanted if each is not None and each.requires_grad]
    with torch.enable_grad():
        y = repeat(watched, call)
        found = iter(torch.autograd.grad(y, needed, dy, allow_unused=True))
    return [None if each is None or not each.requires_grad else next(found) for each in wanted]


def _meaning(
    watched: Watched, call: Call, parameters: Sequence[Tensor | None]
) -> measure.NumpyCall | None:
    """Return what the call computes, its arrays still tensors; None if that is not known."""
    module, found = watched.module, watched.found
    weight, bias = parameters
    gate: Tensor | None = None
    options: dict[str, Any] = {}
    x = call.x
    if module is None:
        given = arguments_of(watched.function, call)
        computes = FUNCTIONS[watched.function]
        axis: Any = _last(given["normalized_shape"])
        eps = given["eps"]
    elif isinstance(found, Recognized):
        computes = "layer_norm" if found.centered else "rms_norm"
        _, _, eps = found.parameters(module)
        axis = -1 if found.axis is None else found.axis
        if found.axis is None and found.sizes is not None:
            axis = _last(found.sizes)
        options["zero_centered_weight"] = found.zero_centered_weight
        if found.gating is not None:
            _, gate = (*call.args, *call.keywords.values(), None)[:2]
            gating = found.gating
            options["activation"] = gating.activation
            options["norm_before_gate"] = gating.norm_before_gate
            if gating.groups > 1:
                return None
    elif isinstance(found, PyTorchs) or isinstance(module, LayerNorm | RMSNorm):
        computes = "layer_norm" if isinstance(module, nn.LayerNorm) else "rms_norm"
        axis = _last(module.normalized_shape)
        eps = module.eps
        if isinstance(module, LayerNorm | RMSNorm) and found is None:
            axis = axis if module.axis is None else module.axis
            options["zero_centered_weight"] = module.zero_centered_weight
            given = arguments_of(type(module).forward, replace(call, args=(module, *call.args)))
            gate = given["gate"]
            x = x if call.total is None else call.total
            options["activation"] = given["activation"]
            options["norm_before_gate"] = given["norm_before_gate"]
    else:
        return None
    eps = machine_epsilon(x.dtype) if eps is None else float(eps)
    return measure.NumpyCall(computes, x, call.y, axis, eps, weight, bias, gate=gate, **options)


def _last(sizes: Any) -> tuple[int, ...]:
    return tuple(range(-len(sizes), 0)) if isinstance(sizes, Sequence) else (-1,)
