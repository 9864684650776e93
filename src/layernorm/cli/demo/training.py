"""Trains the digits' network in one framework, and compares its layer norms with NumPy's."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from layernorm.cli.demo import digits
from layernorm.cli.demo.networks import Network, NormCall, Recipe, build_network
from layernorm.cli.demo.networks.network import Array, Weights
from layernorm.cli.demo.networks.numpy import Network as NumPyNetwork
from layernorm.numpy import layer_norm

GOAL = 0.95
"""The test accuracy that a network trained for all epochs must exceed."""


@dataclass
class Run:
    """One training of the network, in one framework by one recipe."""

    framework: str
    optimizer: str
    loss: list[float] = field(default_factory=list)  # of each step
    test_accuracy: list[float] = field(default_factory=list)  # after each epoch
    parameters: list[dict[str, Any]] = field(default_factory=list)  # of the layer norms
    norm_outputs: int = 0  # elements that the layer norms returned
    other_bits: int = 0  # those whose bits differ from `layernorm.numpy`'s for the same x
    seconds: float = 0.0
    # Weight and bias of each layer norm, at the start and after each epoch.
    norm_history: list[list[tuple[Array, Array]]] = field(default_factory=list)
    # Of the test images, after the training; only in NumPy.
    test_answers: Array = field(default_factory=lambda: np.empty(0, np.int64))
    test_norm_calls: list[NormCall] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, which are many numbers to print."""
        arrays = ("norm_history", "test_answers", "test_norm_calls")
        return {name: value for name, value in vars(self).items() if name not in arrays}

    def parameter_history(self, place: int, name: Literal["weight", "bias"]) -> Array:
        """Return the parameter of a layer norm, (epochs + 1, cols): the start comes first."""
        return np.stack([norms[place][name == "bias"] for norms in self.norm_history])

    def largest_difference(self, other: "Run") -> float:
        """Return the largest difference between the losses of a step here and in the other run."""
        return max(abs(mine - its) for mine, its in zip(self.loss, other.loss, strict=True))


def train(
    framework: str,
    recipe: Recipe,
    data: digits.Digits,
    epochs: int,
    *,
    each_epoch: Callable[[int, digits.Epoch], None] = lambda number, epoch: None,
) -> Run:
    """Train the framework's network; `each_epoch` is called with the epoch's number and results."""
    run = Run(framework, recipe.title)
    weights = digits.initial_weights()
    network = build_network(framework, weights, recipe)
    run.norm_history.append(network.norm_parameters())
    start = time.perf_counter()
    for number, epoch in enumerate(digits.train(network, data, epochs), start=1):
        run.loss += epoch.losses
        run.test_accuracy.append(epoch.test_accuracy)
        run.norm_outputs += sum(call.y.size for call in epoch.norm_calls)
        run.other_bits += sum(_count_other_bits(call) for call in epoch.norm_calls)
        run.norm_history.append(epoch.norm_parameters)
        each_epoch(number, epoch)
    run.seconds = time.perf_counter() - start
    run.parameters = _describe_parameters(network, weights)
    if isinstance(network, NumPyNetwork):
        logits, run.test_norm_calls = network.forward(data.test_images)
        run.test_answers = logits.argmax(axis=1)
    return run


def _count_other_bits(call: NormCall) -> int:
    expected = layer_norm(call.x, call.weight, call.bias)
    return int((call.y.view(np.uint32) != expected.view(np.uint32)).sum())


def _describe_parameters(network: Network, weights: Weights) -> list[dict[str, Any]]:
    described = []
    for place, learned in enumerate(network.norm_parameters()):
        for name, array in zip(("weight", "bias"), learned, strict=True):
            began = weights[f"{3 * place + 1}.{name}"]
            described.append(
                {
                    "name": f"layer norm {place + 1}, {name}",
                    "min": float(array.min()),
                    "mean": float(array.mean()),
                    "max": float(array.max()),
                    "moved": float(np.linalg.norm(array - began)),
                }
            )
    return described
