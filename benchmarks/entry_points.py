"""Time the ways to call us on one row of 768 float32: what each entry point adds to the kernel.

    python benchmarks/entry_points.py [--repeats 30]

Forward, without gradients; medians in microseconds, each group interleaved, beside the ratio to the
first call of its group. In JAX and TensorFlow, a call ends when its result is there.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np

import layernorm
from layernorm.cli.bench.timing import REPEATS, Call, interleave
from layernorm.cli.import_order import import_triton_before_tensorflow
from layernorm.cli.problem import Problem, make_problem

Calls = dict[str, Call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import_triton_before_tensorflow()
    problem = make_problem((1, 768), "float32")
    for front_end in (numpy, torch, jax, tensorflow, keras):
        try:
            groups = list(front_end(problem))
        except ModuleNotFoundError as error:
            print(f"\n{front_end.__name__}: not installed (no module {error.name})")
            continue
        for calls in groups:
            print_times(calls, repeats)


def print_times(calls: Calls, repeats: int) -> None:
    times = {name: 1e6 * each.median for name, each in interleave(calls, repeats=repeats).items()}
    first = next(iter(times.values()))
    print()
    for name, time in times.items():
        print(f"{name:48} {time:8.2f}  {time / first:6.2f}x", flush=True)


def numpy(problem: Problem) -> Iterator[Calls]:
    import layernorm.numpy as front_end

    x, weight, bias = problem.x, problem.weight, problem.bias
    layer_norm, rms_norm = front_end.layer_norm, front_end.rms_norm
    last = np.int64(-1)
    layer, rms_layer = front_end.LayerNorm(768), front_end.RMSNorm(768)
    yield {
        "layernorm.numpy.layer_norm": lambda: layer_norm(x, weight, bias),
        "  axis=1": lambda: layer_norm(x, weight, bias, axis=1),
        "  axis=(-1,)": lambda: layer_norm(x, weight, bias, axis=(-1,)),
        "  axis=np.int64(-1)": lambda: layer_norm(x, weight, bias, axis=last),
        "  eps=1": lambda: layer_norm(x, weight, bias, eps=1),
        "layernorm.numpy.LayerNorm": lambda: layer(x),
        "layernorm.layer_norm": lambda: layernorm.layer_norm(x, weight, bias),
    }
    yield {
        "layernorm.numpy.rms_norm": lambda: rms_norm(x, weight),
        "layernorm.numpy.RMSNorm": lambda: rms_layer(x),
        "layernorm.rms_norm": lambda: layernorm.rms_norm(x, weight),
    }


def torch(problem: Problem) -> Iterator[Calls]:
    import torch

    import layernorm.torch as front_end

    x, weight, bias = map(torch.from_numpy, (problem.x, problem.weight, problem.bias))
    layer = front_end.LayerNorm(768).requires_grad_(False)
    yield {
        "layernorm.torch.layer_norm": lambda: front_end.layer_norm(x, (768,), weight, bias),
        "layernorm.torch.LayerNorm": lambda: layer(x),
        "layernorm.layer_norm": lambda: layernorm.layer_norm(x, weight, bias),
        "torch.nn.functional.layer_norm": lambda: torch.nn.functional.layer_norm(
            x, (768,), weight, bias
        ),
    }


def jax(problem: Problem) -> Iterator[Calls]:
    import jax

    import layernorm.jax as front_end

    arrays = tuple(map(jax.numpy.asarray, (problem.x, problem.weight, problem.bias)))

    def finished(function: Callable[..., jax.Array]) -> Call:
        return lambda: function(*arrays).block_until_ready()

    functions = {
        "layernorm.jax.layer_norm": front_end.layer_norm,
        "layernorm.layer_norm": layernorm.layer_norm,
    }
    for how, transform in (("eager", lambda function: function), ("jitted", jax.jit)):
        yield {
            f"{name}, JAX {how}": finished(transform(function))
            for name, function in functions.items()
        }


def tensorflow(problem: Problem) -> Iterator[Calls]:
    import tensorflow

    import layernorm.tensorflow as front_end

    arrays = tuple(map(tensorflow.constant, (problem.x, problem.weight, problem.bias)))
    yield {
        "layernorm.tensorflow.layer_norm": lambda: front_end.layer_norm(*arrays),
        "layernorm.layer_norm, TensorFlow eager": lambda: layernorm.layer_norm(*arrays),
    }


def keras(problem: Problem) -> Iterator[Calls]:
    import keras

    import layernorm.keras as front_end

    arrays = tuple(map(keras.ops.convert_to_tensor, (problem.x, problem.weight, problem.bias)))
    variables = tuple(map(keras.Variable, (problem.weight, problem.bias)))
    layer = front_end.LayerNormalization(epsilon=1e-5)
    layer.build((1, 768))
    yield {
        f"layernorm.keras.layer_norm, {keras.backend.backend()}": (
            lambda: front_end.layer_norm(*arrays)
        ),
        "  with keras.Variable": lambda: front_end.layer_norm(arrays[0], *variables),
        "layernorm.keras.LayerNormalization": lambda: layer(arrays[0]),
        "layernorm.layer_norm": lambda: layernorm.layer_norm(*arrays),
    }


if __name__ == "__main__":
    main()
