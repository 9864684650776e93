"""Calls of `layernorm.torch`, as in calls_numpy.py. Gradients come from autograd."""

from typing import Any

import torch
from as_numpy_torch import to_array, to_tensor
from layouts import Array
from soak_case import Case

import layernorm
import layernorm.torch as ours


def set_num_threads(count: int) -> None:
    torch.set_num_threads(count)


def results(
    case: Case, x: Array, dy: Array, weight: Array | None, bias: Array | None
) -> dict[str, Array | None]:
    tensors = {"x": x, "weight": weight, "bias": bias}
    tensors = {name: to_tensor(array) for name, array in tensors.items()}
    wanted = [name for name, each in tensors.items() if each is not None and case.needs(f"d{name}")]
    if case.way == "modules":
        module = _module(case, tensors["weight"], tensors["bias"])
        tensors |= {"weight": module.weight, "bias": getattr(module, "bias", None)}
        call = module
    for name in wanted:
        tensors[name].requires_grad_()
    found: dict[str, Any] = {}
    if case.way == "modules":
        found["y"] = call(tensors["x"])
    elif case.way == "operators":
        y, *statistics = _operators(case, *tensors.values())
        names = ("mean", "rstd", "residual") if case.kind == "layer_norm" else ("rstd",)
        found = {"y": y} | dict(zip(names, statistics, strict=True))
    else:
        found["y"] = WAYS[case.way](case, *tensors.values())
    if wanted:
        given = [tensors[name] for name in wanted]
        # In accelerated calls the backward is replaced too.
        with ours.accelerate() if case.way == "accelerated" else torch.enable_grad():
            gradients = torch.autograd.grad(found["y"], given, to_tensor(dy))
        found |= {f"d{name}": each for name, each in zip(wanted, gradients, strict=True)}
    return {name: to_array(each) for name, each in found.items()}


def without_statistics(
    case: Case, x: Array, weight: Array | None, bias: Array | None, out: Array | None = None
) -> Array:
    """Call the top level, which takes `out`."""
    tensors = map(to_tensor, (x, weight, bias))
    into = None if out is None else to_tensor(out)
    y = getattr(layernorm, case.kind)(*_given(case, *tensors), out=into, **_over_axes(case))
    assert into is None or y is into
    return to_array(y)


def _given(case: Case, x, weight, bias) -> tuple:
    return (x, weight, bias) if case.kind == "layer_norm" else (x, weight)


def _over_axes(case: Case) -> dict[str, Any]:
    return dict(case.definition)


def _module(case: Case, weight, bias):
    options = {"eps": case.eps} if case.passes_eps else {}
    options["elementwise_affine"] = weight is not None
    options["axis"] = None if case.has_trailing_axes else case.axes
    options["zero_centered_weight"] = case.zero_centered_weight
    if case.kind == "layer_norm":
        module = ours.LayerNorm(case.normalized_shape, bias=bias is not None, **options)
    else:
        module = ours.RMSNorm(case.normalized_shape, **options)
    for name, each in (("weight", weight), ("bias", bias)):
        if each is not None:
            setattr(module, name, torch.nn.Parameter(each, requires_grad=case.needs(f"d{name}")))
    return module


def _operators(case: Case, x, weight, bias):
    options = (list(case.axes), case.eps, case.zero_centered_weight)
    if case.kind == "layer_norm":
        return torch.ops.layernorm.layer_norm(x, weight, bias, *options)
    return torch.ops.layernorm.rms_norm(x, weight, *options)


def _functions(case: Case, x, weight, bias, *, axis=None):
    options: dict[str, Any] = {"axis": axis} | ({"eps": case.eps} if case.passes_eps else {})
    options["zero_centered_weight"] = case.zero_centered_weight
    x, *parameters = _given(case, x, weight, bias)
    return getattr(ours, case.kind)(x, case.normalized_shape, *parameters, **options)


def _axes(case: Case, x, weight, bias):
    return _functions(case, x, weight, bias, axis=case.axis)


def _top_level(case: Case, x, weight, bias):
    return getattr(layernorm, case.kind)(*_given(case, x, weight, bias), **case.options)


def _accelerated(case: Case, x, weight, bias):
    function = getattr(torch.nn.functional, case.kind)
    with ours.accelerate():
        return function(x, case.normalized_shape, *_given(case, x, weight, bias)[1:], case.eps)


def _compiled(case: Case, x, weight, bias):
    torch.compiler.reset()
    return torch.compile(lambda *given: _functions(case, *given))(x, weight, bias)


WAYS = {
    "functions": _functions,
    "axes": _axes,
    "top_level": _top_level,
    "accelerated": _accelerated,
    "compiled": _compiled,
}
