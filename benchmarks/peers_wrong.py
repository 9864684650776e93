"""Print, as markdown, wrong answers that installed layer norms give on finite input.

    python benchmarks/peers_wrong.py [--rows 1024,16384,262144]

Every peer runs on the CPU with eps = 1e-5, and is judged by `layernorm.reference`. One that is not
installed gets a line saying so. docs/numerics.md explains the tables.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from layernorm import accuracy, reference

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
LayerNorm: TypeAlias = Callable[[Array], Array]
EPS = 1e-5
COLS = 1024
MEANS = (0.0, 1e2, 1e3, 1e4, 1e5)
SCALES = (1e18, 1e30)
KERAS_BACKENDS = ("numpy", "torch", "jax")
SIXTEEN_BITS = ("bfloat16", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print wrong answers of installed layer norms.")
    parser.add_argument("--rows", default="1024,16384,262144", help="row counts of the gradients")
    parser.add_argument("--keras-cells", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keras_cells:
        print(json.dumps(forward_cells(keras_layer_norm())))
        return
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors"
    print(f"Python {platform.python_version()} on {machine}: {', '.join(versions())}\n")
    print_forward_errors()
    print_gradient_sums([int(rows) for rows in arguments.rows.split(",")])
    print_input_gradients()
    print_one_element()
    print_thread_dependence()


def versions() -> Iterator[str]:
    for package in ("numpy", "torch", "jax", "flax", "equinox", "keras", "onnxruntime"):
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"no {package}"


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


# The forward: one function a peer, from x to y over the last axis, without weight and bias.


def numpy_formula() -> LayerNorm:
    def layer_norm(x: Array) -> Array:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + x.dtype.type(EPS))

    return layer_norm


def ours() -> LayerNorm:
    from layernorm.numpy import layer_norm

    return lambda x: layer_norm(x, eps=EPS)


def torch_layer_norm() -> LayerNorm:
    import torch

    return lambda x: torch.nn.functional.layer_norm(
        torch.from_numpy(x), x.shape[-1:], eps=EPS
    ).numpy()


def jax_standardize() -> LayerNorm:
    import jax

    return lambda x: np.asarray(jax.nn.standardize(x, epsilon=EPS))


def flax_layer_norm(fast: bool) -> LayerNorm:
    from flax import nnx

    def layer_norm(x: Array) -> Array:
        module = nnx.LayerNorm(x.shape[-1], epsilon=EPS, use_fast_variance=fast, rngs=nnx.Rngs(0))
        return np.asarray(module(x))

    return layer_norm


def equinox_layer_norm() -> LayerNorm:
    import equinox
    import jax

    def layer_norm(x: Array) -> Array:
        module = equinox.nn.LayerNorm(x.shape[-1:], eps=EPS)
        return np.asarray(jax.vmap(module)(x))

    return layer_norm


def onnxruntime_layer_norm() -> LayerNorm:
    import onnxruntime
    from onnx import TensorProto, helper

    def layer_norm(x: Array) -> Array:
        element = TensorProto.FLOAT16 if x.dtype == np.float16 else TensorProto.FLOAT
        node = helper.make_node("LayerNormalization", ["x", "w"], ["y"], axis=-1, epsilon=EPS)
        values = [
            helper.make_tensor_value_info(name, element, shape)
            for name, shape in (("x", x.shape), ("w", x.shape[-1:]), ("y", x.shape))
        ]
        graph = helper.make_graph([node], "layer_norm", values[:2], values[2:])
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (y,) = session.run(None, {"x": x, "w": np.ones(x.shape[-1], x.dtype)})
        return np.asarray(y)

    return layer_norm


def keras_layer_norm() -> LayerNorm:
    import keras

    def layer_norm(x: Array) -> Array:
        layer = keras.layers.LayerNormalization(epsilon=EPS, dtype=x.dtype.name)
        y: Array = keras.ops.convert_to_numpy(layer(x))
        return y

    return layer_norm


PEERS: dict[str, Callable[[], LayerNorm]] = {
    "layernorm (this project)": ours,
    "NumPy formula": numpy_formula,
    "torch": torch_layer_norm,
    "onnxruntime": onnxruntime_layer_norm,
    "equinox": equinox_layer_norm,
    "flax, default": lambda: flax_layer_norm(fast=True),
    "flax, use_fast_variance=False": lambda: flax_layer_norm(fast=False),
    "jax.nn.standardize": jax_standardize,
}


def forward_cells(layer_norm: LayerNorm) -> list[str]:
    """Measure one peer on every forward input, in the order of `forward_inputs`."""
    cells = []
    for _, x, show in forward_inputs():
        try:
            with np.errstate(all="ignore"):
                y = layer_norm(x)
        except Exception as error:  # a peer may refuse the input with anything
            cells.append(type(error).__name__)
            continue
        cells.append(show(np.asarray(y), x))
    return cells


def forward_inputs() -> Iterator[tuple[str, Array, Callable[[Array, Array], str]]]:
    random = np.random.default_rng(0)
    noise = random.normal(size=(64, COLS))
    for mean in MEANS:
        yield f"mean {mean:g}", (noise + mean).astype(np.float32), show_error
    for scale in SCALES:
        yield f"std {scale:g}", (noise * scale).astype(np.float32), show_error
    yield "[10000, 10001, 10002]", np.array([[10000, 10001, 10002]], np.float32), show_values
    yield "float16 [600, -600, 0]", np.array([[600, -600, 0]], np.float16), show_values


def show_error(y: Array, x: Array) -> str:
    error = np.abs(y - reference.layer_norm(x, eps=EPS)).max()
    if np.isnan(error):
        return "NaN"
    zeros = " (all zeros)" if not y.any() else ""
    return f"{error:.1e}{zeros}, {accuracy.y_error(y, x, eps=EPS):,.3g} ulp"


def show_values(y: Array, x: Array) -> str:
    return ", ".join(f"{v:.4g}" for v in y.ravel().astype(np.float64))


def print_forward_errors() -> None:
    titles = [title for title, _, _ in forward_inputs()]
    results = {name: installed_cells(make) for name, make in PEERS.items()}
    results |= {f"keras, {backend}": keras_cells(backend) for backend in KERAS_BACKENDS}
    large = len(MEANS)
    huge = large + len(SCALES)
    for title, part in (
        (f"Largest error of y, float32, {COLS} columns, standard deviation 1", slice(large)),
        ("The same, mean 0, large standard deviation", slice(large, huge)),
        ("y of three elements; right: -1.225, 0, 1.225 and 1.225, -1.225, 0", slice(huge, None)),
    ):
        print_table(
            title,
            ["", *titles[part]],
            [[name, *(cells[part] or ["not installed"])] for name, cells in results.items()],
        )


def installed_cells(make: Callable[[], LayerNorm]) -> list[str]:
    try:
        return forward_cells(make())
    except ImportError:
        return []


def keras_cells(backend: str) -> list[str]:
    """Measure Keras in a process of its own: it takes its backend once, when imported."""
    child = subprocess.run(
        [sys.executable, __file__, "--keras-cells"],
        env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        missing = "ModuleNotFoundError" in child.stderr or "ImportError" in child.stderr
        return [] if missing else ["failed"] * len(list(forward_inputs()))
    cells: list[str] = json.loads(child.stdout.splitlines()[-1])
    return cells


# Gradients: torch alone among the peers has a hand-written CPU backward.


def torch_backward(dy: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return dx, dweight and dbias, with weight 1, as float64."""
    import torch

    def tensor(a: Array) -> Any:
        if a.dtype.name == "bfloat16":
            return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(a)

    x_, dy_ = tensor(x).requires_grad_(), tensor(dy)
    weight = torch.ones(x.shape[-1], dtype=x_.dtype, requires_grad=True)
    bias = torch.zeros(x.shape[-1], dtype=x_.dtype, requires_grad=True)
    torch.nn.functional.layer_norm(x_, x.shape[-1:], weight, bias, EPS).backward(dy_)
    dx, dweight, dbias = (p.grad.double().numpy() for p in (x_, weight, bias))
    return dx, dweight, dbias


def our_backward(dy: Array, x: Array) -> tuple[Array, Array, Array]:
    from layernorm import numpy as layernorm_numpy

    weight = np.ones(x.shape[-1], x.dtype)
    _, stats = layernorm_numpy.layer_norm_forward(x, weight, weight, eps=EPS)
    dx, dweight, dbias = layernorm_numpy.layer_norm_backward(dy, x, stats, weight)
    return dx.astype(np.float64), dweight.astype(np.float64), dbias.astype(np.float64)


BACKWARDS = {"layernorm (this project)": our_backward, "torch": torch_backward}


def print_gradient_sums(row_counts: list[int]) -> None:
    table = []
    for name, backward in BACKWARDS.items():
        for type_name in SIXTEEN_BITS:
            cells = []
            for rows in row_counts:
                cells.append(gradient_sum_error(backward, type_name, rows))
            table.append([f"{name}, {type_name}", *cells])
    print_table(
        "Relative L2 error of dweight / dbias, 64 columns, dy = (normal + 1) / 8",
        ["", *(f"{rows:,} rows" for rows in row_counts)],
        table,
    )


def gradient_sum_error(backward: Any, type_name: str, rows: int) -> str:
    try:
        dtype = sixteen_bit_type(type_name)
        random = np.random.default_rng(rows)
        x = random.normal(size=(rows, 64)).astype(dtype)
        # an eighth: float16 can hold the sum of 262,144 of them
        dy = ((random.normal(size=(rows, 64)) + 1) / 8).astype(dtype)
        _, *gradients = backward(dy, x)
    except ImportError:
        return "not installed"
    _, *exact = reference.layer_norm_backward(dy, x, eps=EPS)
    return " / ".join(
        f"{np.linalg.norm(g - e) / np.linalg.norm(e):.2g}"
        for g, e in zip(gradients, exact, strict=True)
    )


def sixteen_bit_type(name: str) -> Any:
    return np.float16 if name == "float16" else importlib.import_module("ml_dtypes").bfloat16


def print_input_gradients() -> None:
    table = []
    for name, backward in BACKWARDS.items():
        cells = []
        for mean in MEANS:
            random = np.random.default_rng(1)
            x = (random.normal(size=(64, COLS)) + mean).astype(np.float32)
            dy = random.normal(size=x.shape).astype(np.float32)
            try:
                dx, _, _ = backward(dy, x)
            except ImportError:
                cells.append("not installed")
                continue
            cells.append(f"{accuracy.dx_error(dx.astype(np.float32), dy, x, eps=EPS):,.3g} ulp")
        table.append([name, *cells])
    print_table(
        f"Largest error of dx, float32, {COLS} columns, standard deviation 1",
        ["", *(f"mean {mean:g}" for mean in MEANS)],
        table,
    )


def print_one_element() -> None:
    """With one column y is bias, whatever x is."""
    table = []
    for type_name in SIXTEEN_BITS:
        try:
            x = 1000 * np.random.default_rng(2).normal(size=(1000, 1))
            x = x.astype(sixteen_bit_type(type_name))
        except ImportError:
            continue
        x32 = x.astype(np.float32)
        try:
            import torch

            half = torch.from_numpy(x32).to(getattr(torch, type_name))
            y = torch.nn.functional.layer_norm(half, (1,), eps=EPS).float().numpy()
            table.append(["torch", type_name, f"{np.abs(y).max():.3g}"])
        except ImportError:
            table.append(["torch", type_name, "not installed"])
        try:
            table.append(["layernorm (this project)", type_name, f"{np.abs(ours()(x)).max():.3g}"])
        except ImportError:
            table.append(["layernorm (this project)", type_name, "not installed"])
    print_table(
        "Largest y of 1,000 rows of one element, in size; right: 0", ["", "type", "y"], table
    )


def print_thread_dependence() -> None:
    random = np.random.default_rng(3)
    x, dy = random.normal(size=(2, 4099, 768)).astype(np.float32)
    table = []
    for name, backward, package in (
        ("layernorm (this project)", our_backward, "layernorm"),
        ("torch", torch_backward, "torch"),
    ):
        try:
            answers = []
            for threads in (1, 2):
                importlib.import_module(package).set_num_threads(threads)
                answers.append(backward(dy, x))
        except ImportError:
            table.append([name, "not installed", "", ""])
            continue
        one, two = answers
        table.append(
            [name, *(str(np.count_nonzero(a != b)) for a, b in zip(one, two, strict=True))]
        )
    print_table(
        "Elements that differ between one thread and two, float32, 4099 rows of 768",
        ["", "dx", "dweight (of 768)", "dbias (of 768)"],
        table,
    )


if __name__ == "__main__":
    main()
