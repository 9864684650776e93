"""The network in TensorFlow, its layer norms those of `layernorm.tensorflow`."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from layernorm.cli.digits import SIZES
from layernorm.cli.networks.network import Array, NormCall, Recipe, Step, Weights
from layernorm.tensorflow import layer_norm

NORMS = range(len(SIZES) - 2)


class Network:
    """Variables, and a tf.function that trains them."""

    def __init__(self, weights: Weights, recipe: Recipe) -> None:
        self._weights = {name: tf.Variable(each) for name, each in weights.items()}
        step = tf.Variable(0.0)
        optimizer = (
            tf.compat.v1.train.AdamOptimizer(
                recipe.lr, beta2=recipe.beta2, epsilon=lambda: recipe.uncorrected_eps(step)
            )
            if recipe.optimizer == "Adam"
            else tf.compat.v1.train.MomentumOptimizer(recipe.lr, recipe.momentum)
        )

        @tf.function
        def train(images: tf.Tensor, labels: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                logits, norm_calls = _forward(self._weights, images)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                loss = tf.reduce_mean(losses)
            variables = list(self._weights.values())
            step.assign_add(1.0)
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss, norm_calls

        self._train = train

    def step(self, images: Array, labels: Array) -> Step:
        """Train on one batch."""
        parameters = self.norm_parameters()
        loss, norm_calls = self._train(tf.constant(images), tf.constant(labels))
        return Step(
            float(loss),
            [
                NormCall(x.numpy(), *own, y.numpy())
                for own, (x, y) in zip(parameters, norm_calls, strict=True)
            ],
        )

    def logits(self, images: Array) -> Array:
        """Return (images, 10)."""
        logits: Array = _forward(self._weights, tf.constant(images))[0].numpy()
        return logits

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm."""
        return [
            (
                self._weights[f"{3 * place + 1}.weight"].numpy(),
                self._weights[f"{3 * place + 1}.bias"].numpy(),
            )
            for place in NORMS
        ]


def _forward(weights: Mapping[str, Any], x: tf.Tensor) -> tuple[tf.Tensor, list[Any]]:
    """Return the logits, and what each layer norm got and returned."""
    norm_calls = []
    for place in NORMS:
        x = _linear(weights, 3 * place, x)
        y = layer_norm(x, weights[f"{3 * place + 1}.weight"], weights[f"{3 * place + 1}.bias"])
        norm_calls.append((x, y))
        x = tf.nn.relu(y)
    return _linear(weights, 3 * len(NORMS), x), norm_calls


def _linear(weights: Mapping[str, Any], layer: int, x: tf.Tensor) -> tf.Tensor:
    product = tf.linalg.matmul(x, weights[f"{layer}.weight"], transpose_b=True)
    return product + weights[f"{layer}.bias"]
