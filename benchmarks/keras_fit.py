"""An epoch of a small transformer on TensorFlow: our layers and Keras's, with XLA or without.

    python benchmarks/keras_fit.py [--samples 4]

Medians in milliseconds, timed in turns in one process.
"""

import argparse
import os
import statistics
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import layernorm.keras as ours

COLS = 256


def transformer(norm: type) -> keras.Model:
    inputs = x = keras.Input((128, COLS))
    for _ in range(2):
        hidden = norm()(x)
        x = x + keras.layers.MultiHeadAttention(4, COLS // 4)(hidden, hidden)
        hidden = keras.layers.Dense(4 * COLS, activation="gelu")(norm()(x))
        x = x + keras.layers.Dense(COLS)(hidden)
    return keras.Model(inputs, keras.layers.Dense(1)(norm()(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4)
    samples = parser.parse_args().samples
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((64, 128, cols)).astype(np.float32) for cols in (COLS, 1))
    models: dict[str, keras.Model] = {}
    for name, layers in (("ours", ours), ("keras", keras.layers)):
        for way in ("auto", False):
            model = transformer(layers.LayerNormalization)
            model.compile("sgd", "mse", jit_compile=way)
            models[f"{name}, jit_compile={way}"] = model
    times: dict[str, list[float]] = {name: [] for name in models}
    for sample in range(-1, samples):
        for name, model in models.items():
            start = time.perf_counter()
            model.fit(x, y, batch_size=16, verbose=0)
            if sample >= 0:
                times[name].append(time.perf_counter() - start)
    for name, each in times.items():
        print(f"{name}: {statistics.median(each) * 1e3:,.0f}")


if __name__ == "__main__":
    main()
