"""The interface of every framework's network, and the recipes by which it is trained."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Weights: TypeAlias = Mapping[str, Array]


class Recipe(NamedTuple):
    """An optimizer, which takes the steps of torch.optim's of this name."""

    title: str
    optimizer: Literal["SGD", "Adam"]
    lr: float
    momentum: float = 0.0  # of SGD
    beta2: float = 0.999  # of Adam, whose beta1 is 0.9
    eps: float = 1e-8

    def uncorrected_eps(self, step: Any) -> Any:
        """Return the eps with which TensorFlow's and Keras's Adam take the steps of torch.optim's.

        They add eps before correcting the bias of the second moment; torch.optim adds it
        afterwards. `step` counts from 1.
        """
        return self.eps * (1 - self.beta2**step) ** 0.5


RECIPES = (
    Recipe("SGD, momentum 0.9", "SGD", lr=0.05, momentum=0.9),
    Recipe("Adam", "Adam", lr=3e-3),
)


class NormCall(NamedTuple):
    """The arrays of one layer norm in a forward pass, before the parameters changed."""

    x: Array
    weight: Array
    bias: Array
    y: Array


class Step(NamedTuple):
    """The results of one training step."""

    loss: float
    norm_calls: list[NormCall]  # in the order of the layers


class Network(Protocol):
    """Linear, LayerNorm, ReLU, twice, and a last Linear; eps is 1e-5, everything float32."""

    def __init__(self, weights: Weights, recipe: Recipe) -> None:
        """Start from these weights, named as by `digits.initial_weights`."""

    def step(self, images: Array, labels: Array) -> Step:
        """Train on one batch: the mean softmax cross-entropy, its gradients, the optimizer."""
        raise NotImplementedError

    def logits(self, images: Array) -> Array:
        """Return (images, 10), without training."""
        raise NotImplementedError

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return the current weight and bias of each layer norm."""
        raise NotImplementedError
