"""The network in JAX, with the layer norms of `layernorm.jax` and the optimizers of optax."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from layernorm.cli.demo.networks import functional
from layernorm.cli.demo.networks.network import Array, Recipe, Step, Weights
from layernorm.jax import layer_norm


class Network:
    """A function of the weights, compiled with its gradients and the optimizer's step."""

    def __init__(self, weights: Weights, recipe: Recipe) -> None:
        self._weights = {name: jax.numpy.asarray(each) for name, each in weights.items()}
        optimizer = (
            optax.adam(recipe.lr, b2=recipe.beta2, eps=recipe.eps)
            if recipe.optimizer == "Adam"
            else optax.sgd(recipe.lr, recipe.momentum)
        )
        self._state = optimizer.init(self._weights)

        @jax.jit
        def train(weights: Any, state: Any, images: Any, labels: Any) -> Any:
            (loss, norm_calls), gradients = jax.value_and_grad(_loss, has_aux=True)(
                weights, images, labels
            )
            updates, state = optimizer.update(gradients, state)
            return optax.apply_updates(weights, updates), state, loss, norm_calls

        self._train = train

    def step(self, images: Array, labels: Array) -> Step:
        """Train on one batch."""
        parameters = self.norm_parameters()
        self._weights, self._state, loss, norm_calls = self._train(
            self._weights, self._state, images, labels
        )
        return Step(float(loss), functional.norm_calls_of(parameters, norm_calls))

    def logits(self, images: Array) -> Array:
        """Return (images, 10)."""
        return np.asarray(_forward(self._weights, images)[0])

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm."""
        return functional.norm_parameters(self._weights)


def _loss(weights: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    logits, norm_calls = _forward(weights, images)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), norm_calls


def _forward(weights: Mapping[str, Any], x: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    return functional.forward(weights, x, linear=_linear, layer_norm=layer_norm, relu=jax.nn.relu)


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    return x @ weight.T + bias
