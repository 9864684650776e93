"""The network in TensorFlow, with the layer norms of `layernorm.tensorflow`."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from layernorm.cli.demo.networks import functional
from layernorm.cli.demo.networks.network import Array, Recipe, Step, Weights
from layernorm.tensorflow import layer_norm


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
        return Step(float(loss), functional.norm_calls_of(parameters, norm_calls))

    def logits(self, images: Array) -> Array:
        """Return (images, 10)."""
        logits: Array = _forward(self._weights, tf.constant(images))[0].numpy()
        return logits

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm."""
        return functional.norm_parameters(self._weights)


def _forward(weights: Mapping[str, Any], x: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    return functional.forward(weights, x, linear=_linear, layer_norm=layer_norm, relu=tf.nn.relu)


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    return tf.linalg.matmul(x, weight, transpose_b=True) + bias
