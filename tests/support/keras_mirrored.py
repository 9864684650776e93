"""Train on two virtual CPUs under MirroredStrategy: print the losses of Keras's layers and of ours.

Run by tests/tensorflow/test_tensorflow.py, in a process of its own, because TensorFlow divides its
devices once.
"""

import json

import keras
import numpy as np
import tensorflow as tf

import layernorm.keras as ours

CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 2)
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
X = np.random.default_rng(0).standard_normal((32, 6)).astype(np.float32)


def model(layers) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    y = layers.LayerNormalization()(keras.layers.Dense(8)(inputs))
    y = layers.RMSNormalization()(keras.layers.Dense(6)(y))
    return keras.Model(inputs, y)


def losses(kind: str) -> list[float]:
    with STRATEGY.scope():
        network = model(ours if kind == "ours" else keras.layers)
        network.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        if kind == "converted":
            assert len(ours.convert(network).swapped) == 2
    history = network.fit(X, X[:, ::-1], batch_size=8, epochs=3, shuffle=False, verbose=0)
    predicted = network.predict(X, verbose=0)
    return [*history.history["loss"], float(np.square(predicted).mean())]


print(json.dumps({kind: losses(kind) for kind in ("kerass", "ours", "converted")}))
