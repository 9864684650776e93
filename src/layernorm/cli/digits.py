"""A small network with layer norm that reads handwritten digits; every gradient written by hand.

The network is Linear, LayerNorm, ReLU, twice, and a last Linear. The first weights and the order of
the images are plain data, drawn by NumPy, so that the same training can be run in any framework.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from layernorm.numpy import LayerNorm, Parameter

Array: TypeAlias = npt.NDArray[Any]

SIZES = (64, 128, 64, 10)  # 8x8 images, two hidden layers, ten digits
BATCH_SIZE = 64
TEST_IMAGES = 360  # a fifth


class Digits(NamedTuple):
    """Images (count, 64) with pixels from 0 to 1, float32, and the digits they show."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


class Epoch(NamedTuple):
    """What one pass over the training images came to."""

    losses: list[float]  # of each step
    test_accuracy: float  # after it


class Optimizer(Protocol):
    """Changes parameters by their gradients."""

    def step(self) -> None:
        """Change the parameters."""

    def zero_grad(self) -> None:
        """Forget the gradients."""


def load_digits(*, seed: int = 0) -> Digits:
    """Load scikit-learn's 1,797 digits, shuffled and split. ModuleNotFoundError without it."""
    from sklearn.datasets import load_digits as load

    data = load()
    images = (data.data / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(images[train], data.target[train], images[test], data.target[test])


def initial_weights(*, seed: int = 1) -> dict[str, Array]:
    """Draw the first weights: He's normal ones for the linear layers, ones and zeros for the norms.

    The names are those of torch.nn.Sequential's state, the linear weights (outputs, inputs).
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for layer, (inputs, outputs) in enumerate(pairwise(SIZES)):
        scale = np.sqrt(2 / inputs)
        weight = scale * rng.standard_normal((outputs, inputs))
        weights[f"{3 * layer}.weight"] = weight.astype(np.float32)
        weights[f"{3 * layer}.bias"] = np.zeros(outputs, np.float32)
        if layer < len(SIZES) - 2:
            weights[f"{3 * layer + 1}.weight"] = np.ones(outputs, np.float32)
            weights[f"{3 * layer + 1}.bias"] = np.zeros(outputs, np.float32)
    return weights


def batches(count: int, *, epoch: int, seed: int = 2) -> Iterator[Array]:
    """Yield the places of the images of each full batch of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count - BATCH_SIZE + 1, BATCH_SIZE):
        yield order[start : start + BATCH_SIZE]


class Linear:
    """y = x @ weight.T + bias."""

    def __init__(self, weight: Array, bias: Array) -> None:
        self.weight, self.bias = Parameter(weight.copy()), Parameter(bias.copy())
        self._x: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Return y, and remember x."""
        self._x = x
        y: Array = x @ self.weight.data.T + self.bias.data
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx, and add to the gradients."""
        self.weight.accumulate(dy.T @ self._x)
        self.bias.accumulate(dy.sum(axis=0))
        dx: Array = dy @ self.weight.data
        return dx

    def parameters(self) -> Iterator[Parameter]:
        """Yield weight and bias."""
        yield from (self.weight, self.bias)


class ReLU:
    """y = max(x, 0)."""

    def __init__(self) -> None:
        self._is_positive: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Return y, and remember where x is positive."""
        self._is_positive = x > 0
        return np.maximum(x, 0)

    def backward(self, dy: Array) -> Array:
        """Return dx."""
        dx: Array = dy * self._is_positive
        return dx

    def parameters(self) -> Iterator[Parameter]:
        """Yield nothing."""
        yield from ()


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean loss of a batch and its gradient with respect to the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    dlogits = np.exp(log_probability)
    dlogits[rows, labels] -= 1
    return float(-log_probability[rows, labels].mean()), dlogits / np.float32(len(labels))


class Network:
    """Linear, LayerNorm, ReLU; the same again; Linear."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        """Build the layers with the weights that `initial_weights` names."""
        self.norms = [LayerNorm(size) for size in SIZES[1:-1]]
        self.layers: list[Linear | LayerNorm | ReLU] = []
        for place, norm in enumerate(self.norms):
            first = 3 * place
            norm.load_state_dict(
                {name: weights[f"{first + 1}.{name}"] for name in ("weight", "bias")}
            )
            self.layers += [
                Linear(weights[f"{first}.weight"], weights[f"{first}.bias"]), norm, ReLU()
            ]  # fmt: skip
        last = 3 * len(self.norms)
        self.layers.append(Linear(weights[f"{last}.weight"], weights[f"{last}.bias"]))

    def __call__(self, x: Array) -> Array:
        """Return the logits."""
        for layer in self.layers:
            x = layer(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Return the gradient with respect to the images, and add to those of the parameters."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters of all layers."""
        for layer in self.layers:
            yield from layer.parameters()


def train(network: Network, optimizer: Optimizer, digits: Digits, epochs: int) -> Iterator[Epoch]:
    """Train, and yield what each epoch came to."""
    for epoch in range(epochs):
        losses = []
        for batch in batches(len(digits.train_images), epoch=epoch):
            logits = network(digits.train_images[batch])
            loss, dlogits = softmax_cross_entropy(logits, digits.train_labels[batch])
            optimizer.zero_grad()
            network.backward(dlogits)
            optimizer.step()
            losses.append(loss)
        yield Epoch(losses, accuracy(network, digits.test_images, digits.test_labels))


def accuracy(network: Network, images: Array, labels: Array) -> float:
    """Return the share of the images whose digit the network names."""
    return float((network(images).argmax(axis=1) == labels).mean())
