"""The network as a function of its weights, for frameworks that differentiate functions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from layernorm.cli.demo.digits import SIZES
from layernorm.cli.demo.networks.network import Array, NormCall

NORMS = range(len(SIZES) - 2)


def forward(
    weights: Mapping[str, Any],
    x: Any,
    *,
    linear: Callable[[Any, Any, Any], Any],
    layer_norm: Callable[[Any, Any, Any], Any],
    relu: Callable[[Any], Any],
) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return the logits, and the x and y of each layer norm."""
    norm_calls = []
    for place in NORMS:
        x = linear(x, *_weight_and_bias(weights, 3 * place))
        y = layer_norm(x, *_weight_and_bias(weights, 3 * place + 1))
        norm_calls.append((x, y))
        x = relu(y)
    return linear(x, *_weight_and_bias(weights, 3 * len(NORMS))), norm_calls


def norm_parameters(weights: Mapping[str, Any]) -> list[tuple[Array, Array]]:
    """Copy weight and bias of each layer norm."""
    return [
        (np.array(weight), np.array(bias))
        for weight, bias in (_weight_and_bias(weights, 3 * place + 1) for place in NORMS)
    ]


def norm_calls_of(
    parameters: Iterable[tuple[Array, Array]], calls: Iterable[tuple[Any, Any]]
) -> list[NormCall]:
    """Combine the parameters of each layer norm with its x and y, as NumPy arrays."""
    return [
        NormCall(np.asarray(x), weight, bias, np.asarray(y))
        for (weight, bias), (x, y) in zip(parameters, calls, strict=True)
    ]


def _weight_and_bias(weights: Mapping[str, Any], layer: int) -> tuple[Any, Any]:
    return weights[f"{layer}.weight"], weights[f"{layer}.bias"]
