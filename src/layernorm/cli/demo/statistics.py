"""What the picture of a training shows, computed from the arrays of a run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from layernorm.cli.demo.networks.network import Array, NormCall
from layernorm.numpy import layer_norm


class RowStatistics(NamedTuple):
    """Over the columns of each row; each (rows,), float64."""

    mean: Array
    std: Array
    low: Array  # the 5th percentile
    high: Array  # the 95th


def row_statistics(rows: Array) -> RowStatistics:
    """Return what describes each row of an array (rows, cols)."""
    rows = rows.astype(np.float64)
    low, high = np.percentile(rows, (5, 95), axis=1)
    return RowStatistics(rows.mean(axis=1), rows.std(axis=1), low, high)


def stages(call: NormCall) -> tuple[Array, Array, Array]:
    """Return what enters a layer norm, the same normalized, and what leaves it.

    That is x; (x - mean) / sqrt(var + eps), before weight and bias; and y.
    """
    return call.x, layer_norm(call.x), call.y


def epoch_means(loss: Sequence[float], epochs: int) -> Array:
    """Return the mean loss of each epoch, from the losses of all steps."""
    means: Array = np.reshape(loss, (epochs, -1)).mean(axis=1)
    return means


def images_to_show(answers: Array, labels: Array, *, most_wrong: int) -> tuple[Array, Array]:
    """Return the indices of the first image of each digit read right, and of the first misread."""
    is_right = answers == labels
    right = [np.flatnonzero(is_right & (labels == digit))[:1] for digit in range(10)]
    return np.concatenate(right), np.flatnonzero(~is_right)[:most_wrong]
