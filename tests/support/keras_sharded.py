"""Train on 8 devices whose layout splits the normalized axis: print losses, and what is gathered.

Run by tests/keras/test_keras.py, in a process of its own, with Keras's JAX backend.
"""

import json
import re

import jax
import keras
import numpy as np

import layernorm.keras as ours

X = np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32)
WIDTH = 64
distribution = keras.distribution


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    y = keras.layers.Dense(WIDTH, name="wide")(inputs)
    y = ours.LayerNormalization(name="layer_norm", beta_initializer="ones")(y)
    y = ours.RMSNormalization(name="rms_norm")(y)
    return keras.Model(inputs, keras.layers.Dense(6, name="narrow")(y))


def trained() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the model, and its losses and weights after a few steps."""
    network = model()
    network.compile(keras.optimizers.SGD(0.1), "mse")
    history = network.fit(X, X[:, ::-1], batch_size=16, epochs=3, shuffle=False, verbose=0)
    return network, [np.array(history.history["loss"]), *network.get_weights()]


_, alone = trained()
mesh = distribution.DeviceMesh((2, 4), ("batch", "model"), distribution.list_devices())
layout = distribution.LayoutMap(mesh)
layout["wide/kernel"] = (None, "model")
layout["wide/bias"] = ("model",)
layout["layer_norm/(gamma|beta)"] = ("model",)
layout["rms_norm/scale"] = ("model",)
layout["narrow/kernel"] = ("model", None)
layout["(wide|layer_norm|rms_norm)/output"] = ("batch", "model")
distribution.set_distribution(distribution.ModelParallel(layout_map=layout, batch_dim_name="batch"))
network, shared = trained()


def loss(trainable, others, x):
    return (network.stateless_call(trainable, others, x, training=True)[0] ** 2).mean()


x = distribution.distribute_tensor(X, distribution.TensorLayout(("batch", None), mesh))
values = [
    [each.value for each in every]
    for every in (network.trainable_variables, network.non_trainable_variables)
]
compiled = jax.jit(jax.value_and_grad(loss)).lower(*values, x).compile().as_text()
gathered = re.findall(r" = \w+\[([\d,]+)\]\S* (?:all-gather|all-to-all)\(", compiled)
gathered = [int(np.prod([int(size) for size in each.split(",")])) for each in gathered]
differences = [
    float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(shared, alone, strict=True)
]
split = [each.path for each in network.variables if "model" in each.value.sharding.spec]
print(
    json.dumps(
        {
            "differences": differences,
            "split": split,
            "numbers_gathered": gathered,
            "numbers_in_x": len(X) // 2 * WIDTH,
        }
    )
)
