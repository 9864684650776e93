"""The network in JAX, its layer norms those of `layernorm.jax`, its optimizers optax's."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from layernorm.cli.digits import SIZES
from layernorm.cli.networks.network import Array, NormCall, Recipe, Step, Weights
from layernorm.jax import layer_norm

NORMS = range(len(SIZES) - 2)


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
        before = self._weights
        self._weights, self._state, loss, norm_calls = self._train(
            before, self._state, images, labels
        )
        return Step(
            float(loss),
            [
                NormCall(np.asarray(x), *_weight_and_bias(before, place), np.asarray(y))
                for place, (x, y) in zip(NORMS, norm_calls, strict=True)
            ],
        )

    def logits(self, images: Array) -> Array:
        """Return (images, 10)."""
        return np.asarray(_forward(self._weights, images)[0])

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm."""
        return [_weight_and_bias(self._weights, place) for place in NORMS]


def _loss(weights: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    logits, norm_calls = _forward(weights, images)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), norm_calls


def _forward(weights: Mapping[str, Any], x: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return the logits, and what each layer norm got and returned."""
    norm_calls = []
    for place in NORMS:
        x = _linear(weights, 3 * place, x)
        y = layer_norm(x, weights[f"{3 * place + 1}.weight"], weights[f"{3 * place + 1}.bias"])
        norm_calls.append((x, y))
        x = jax.nn.relu(y)
    return _linear(weights, 3 * len(NORMS), x), norm_calls


def _linear(weights: Mapping[str, Any], layer: int, x: Any) -> Any:
    return x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]


def _weight_and_bias(weights: Mapping[str, Any], place: int) -> tuple[Array, Array]:
    weight, bias = (np.asarray(weights[f"{3 * place + 1}.{name}"]) for name in ("weight", "bias"))
    return weight, bias
