"""The network in Keras, on any backend, with the layer norms of `layernorm.keras`."""

from typing import Any

import keras
import numpy as np

from layernorm.cli.demo.digits import SIZES
from layernorm.cli.demo.networks.functional import norm_calls_of
from layernorm.cli.demo.networks.network import Array, Recipe, Step, Weights
from layernorm.keras import LayerNormalization


class Adam(keras.optimizers.Adam):
    """Keras's Adam, with eps added where torch.optim adds it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.lr, beta_2=recipe.beta2)
        self._recipe = recipe

    @property
    def epsilon(self) -> Any:
        """What this step adds to the root of the second moment."""
        return self._recipe.uncorrected_eps(keras.ops.cast(self.iterations + 1, "float32"))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        """Ignored: the recipe has it."""


class Network:
    """A functional model, trained by Keras's own train_on_batch."""

    def __init__(self, weights: Weights, recipe: Recipe) -> None:
        x = inputs = keras.Input(SIZES[:1])
        self._norms: list[LayerNormalization] = []
        norm_calls = []
        for size in SIZES[1:-1]:
            x = keras.layers.Dense(size)(x)
            self._norms.append(LayerNormalization(epsilon=1e-5))
            y = self._norms[-1](x)
            norm_calls.append((x, y))
            x = keras.layers.ReLU()(y)
        logits = keras.layers.Dense(SIZES[-1])(x)
        self._model = keras.Model(inputs, logits)
        self._norm_calls = keras.Model(inputs, norm_calls)
        # Keras stores linear weights as (inputs, outputs).
        self._model.set_weights([each.T for each in weights.values()])
        self._model.compile(
            Adam(recipe)
            if recipe.optimizer == "Adam"
            else keras.optimizers.SGD(recipe.lr, recipe.momentum),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    def step(self, images: Array, labels: Array) -> Step:
        """Train on one batch."""
        norm_calls = norm_calls_of(
            self.norm_parameters(), self._norm_calls.predict_on_batch(images)
        )
        return Step(float(self._model.train_on_batch(images, labels)), norm_calls)

    def logits(self, images: Array) -> Array:
        """Return (images, 10)."""
        return np.asarray(self._model.predict_on_batch(images))

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm."""
        return [(norm.get_weights()[0], norm.get_weights()[1]) for norm in self._norms]
