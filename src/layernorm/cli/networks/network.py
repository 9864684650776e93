"""What every framework's network can do, and how it is trained."""

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
        """Give eps to an Adam that adds it before the second moment's bias is corrected.

        TensorFlow's and Keras's do; torch.optim's adds it afterwards. `step` counts from 1.
        """
        return self.eps * (1 - self.beta2**step) ** 0.5


RECIPES = (
    Recipe("SGD, momentum 0.9", "SGD", lr=0.05, momentum=0.9),
    Recipe("Adam", "Adam", lr=3e-3),
)


class NormCall(NamedTuple):
    """What one layer norm got and returned in a forward pass, before the parameters changed."""

    x: Array
    weight: Array
    bias: Array
    y: Array


class Step(NamedTuple):
    """What one step of the training came to."""

    loss: float
    norm_calls: list[NormCall]  # in the order of the layers


class Network(Protocol):
    """Linear, LayerNorm, ReLU, twice, and a last Linear; eps is 1e-5, everything float32."""

    def __init__(self, weights: Weights, recipe: Recipe) -> None:
        """Begin with these weights, whose names `layernorm.cli.digits.initial_weights` gives."""

    def step(self, images: Array, labels: Array) -> Step:
        """Train on one batch: the mean softmax cross-entropy, its gradients, the optimizer."""
        raise NotImplementedError

    def logits(self, images: Array) -> Array:
        """Return (images, 10), without training."""
        raise NotImplementedError

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm as they are now."""
        raise NotImplementedError
