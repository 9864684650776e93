"""Calls of `layernorm.numpy`: each takes a case and its arrays, and returns results by name."""

from typing import Any

from calls import assert_same_bits
from layouts import Array
from soak_case import Case

import layernorm
import layernorm.numpy as ours


def set_num_threads(count: int) -> None:
    layernorm.set_num_threads(count)


def results(
    case: Case, x: Array, dy: Array, weight: Array | None, bias: Array | None
) -> dict[str, Array | None]:
    """Call the functions, or a layer."""
    if case.way == "layers":
        return _of_a_layer(case, x, dy, weight, bias)
    y, stats = getattr(ours, f"{case.kind}_forward")(x, *_given(case, weight, bias), **case.options)
    assert_same_bits(without_statistics(case, x, weight, bias), y, "y without statistics")
    found = {"y": y, "mean": stats.mean, "rstd": stats.rstd, "residual": stats.residual}
    if case.need:
        found |= backward(case, dy, x, stats, weight)
    return found


def without_statistics(
    case: Case, x: Array, weight: Array | None, bias: Array | None, out: Array | None = None
) -> Array:
    function = getattr(layernorm, case.kind)
    return function(x, *_given(case, weight, bias), out=out, **case.options)


def backward(
    case: Case, dy: Array, x: Array, stats: ours.Stats, weight: Array | None
) -> dict[str, Array | None]:
    options: dict[str, Any] = {"need_dx": case.needs("dx"), "need_dweight": case.needs("dweight")}
    options["zero_centered_weight"] = case.zero_centered_weight
    if case.kind == "layer_norm":
        options["need_dbias"] = case.needs("dbias")
    gradients = getattr(ours, f"{case.kind}_backward")(dy, x, stats, weight, **options)
    return dict(zip(("dx", "dweight", "dbias"), gradients, strict=False))


def _of_a_layer(
    case: Case, x: Array, dy: Array, weight: Array | None, bias: Array | None
) -> dict[str, Array | None]:
    options: dict[str, Any] = {"eps": case.eps} if case.passes_eps else {}
    options["elementwise_affine"] = weight is not None
    if case.kind == "layer_norm":
        layer = ours.LayerNorm(case.normalized_shape, bias=bias is not None, **options)
    else:
        layer = ours.RMSNorm(case.normalized_shape, **options)
    for parameter, array in ((layer.weight, weight), (layer.bias, bias)):
        if parameter is not None:
            parameter.data = array
    found: dict[str, Array | None] = {"y": layer(x)}
    if case.need:
        found["dx"] = layer.backward(dy)
        found["dweight"] = None if layer.weight is None else layer.weight.grad
        found["dbias"] = None if layer.bias is None else layer.bias.grad
    return found


def _given(case: Case, weight: Array | None, bias: Array | None) -> tuple[Array | None, ...]:
    return (weight, bias) if case.kind == "layer_norm" else (weight,)
