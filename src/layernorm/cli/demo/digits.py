"""The data and the training loop of a small network that reads handwritten digits.

The network is Linear, LayerNorm, ReLU, twice, and a last Linear. NumPy draws the initial weights
and the order of the images, so that `layernorm.cli.demo.networks` trains the same network in every
framework.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from layernorm.cli.demo.networks.network import Array, Network, NormCall

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
    """The results of one pass over the training images."""

    losses: list[float]  # of each step
    test_accuracy: float  # after it
    norm_calls: list[NormCall]
    norm_parameters: list[tuple[Array, Array]]  # after it


def load_digits(*, seed: int = 0) -> Digits:
    """Load scikit-learn's 1,797 digits, shuffled and split.

    Raises: ImportError where scikit-learn is not installed, with the command that installs it.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'layernorm[demo]'"
        ) from None

    data = load()
    images = (data.data / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(images[train], data.target[train], images[test], data.target[test])


def initial_weights(*, seed: int = 1) -> dict[str, Array]:
    """Draw the initial weights: He's for the linear layers, ones and zeros for the layer norms.

    The names are those of torch.nn.Sequential's state; linear weights are (outputs, inputs).
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
    """Yield the indices of the images of each full batch of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count - BATCH_SIZE + 1, BATCH_SIZE):
        yield order[start : start + BATCH_SIZE]


def train(network: Network, digits: Digits, epochs: int) -> Iterator[Epoch]:
    """Train, and yield the results of each epoch."""
    for epoch in range(epochs):
        steps = [
            network.step(digits.train_images[batch], digits.train_labels[batch])
            for batch in batches(len(digits.train_images), epoch=epoch)
        ]
        yield Epoch(
            [step.loss for step in steps],
            accuracy(network, digits.test_images, digits.test_labels),
            [call for step in steps for call in step.norm_calls],
            network.norm_parameters(),
        )


def accuracy(network: Network, images: Array, labels: Array) -> float:
    """Return the share of the images that the network reads right."""
    return float((network.logits(images).argmax(axis=1) == labels).mean())
