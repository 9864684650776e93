"""The top level: public names, and the choice of the front end by the array's type."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from own_process import run
from problems import a_problem

import layernorm
from layernorm import numpy as front


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_the_top_level_calls_the_front_end_of_the_array(name):
    x, weight, *_ = a_problem((3, 4, 5), 1)
    options = {"axis": 1, "eps": 0.1, "zero_centered_weight": True}
    expected = getattr(front, name)(x, weight, **options)
    out = np.empty_like(x)
    got = getattr(layernorm, name)(x, weight, **options, out=out)
    assert got is out
    np.testing.assert_array_equal(got, expected)
    defaults = getattr(layernorm, name)(x * 1e-3)
    np.testing.assert_array_equal(defaults, getattr(front, name)(x * 1e-3))


@pytest.mark.parametrize("name", ["quantized_layer_norm", "quantized_rms_norm"])
def test_the_top_level_quantizes_as_the_front_end_of_the_array(name):
    x, weight, *_ = a_problem((3, 4, 5), 1)
    for options in ({"axis": 1, "eps": 0.1, "zero_centered_weight": True}, {"axis": 1}):
        for given in (options, options | {"dtype": "float8_e5m2", "scale": 0.1}):
            expected = getattr(front, name)(x, weight, **given)
            got = getattr(layernorm, name)(x, weight, **given)
            for mine, right in zip(got, expected, strict=True):
                np.testing.assert_array_equal(mine, right)


@pytest.mark.parametrize("x", [None, 1.0, {1: 2}, range(3), "abc"], ids=repr)
def test_the_top_level_rejects_other_objects(x):
    for name in ("layer_norm", "rms_norm", "quantized_layer_norm", "quantized_rms_norm"):
        call = getattr(layernorm, name)
        with pytest.raises(
            TypeError,
            match=r"x is of type builtins\.\w+.*serves \(jax, keras, numpy, tensorflow, torch\)",
        ):
            call(x)


def test_public_names():
    quantized = {"quantized_layer_norm", "quantized_rms_norm"}
    settings = {"__version__", "get_num_threads", "set_num_threads"}
    assert set(layernorm.__all__) == {"layer_norm", "rms_norm"} | quantized | settings
    for module in (layernorm, front):
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name} has no docstring"


def test_the_top_level_imports_no_framework():
    frameworks = {"torch", "jax", "tensorflow", "keras"}
    code = f"import sys, layernorm; sys.exit(bool({frameworks} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


FRAMEWORKS = {"torch", "triton", "jax", "flax", "equinox", "tensorflow", "keras"}


@pytest.mark.parametrize(
    ("framework", "x"),
    [
        ("torch", "torch.ones(2, 3)"),
        ("jax", "jax.numpy.ones((2, 3))"),
        ("tensorflow", "tensorflow.ones((2, 3))"),
        ("keras", "keras.KerasTensor((2, 3))"),
    ],
)
def test_a_call_imports_no_other_framework(framework, x):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"could not import {framework}")
    code = f"""
import sys, layernorm, {framework}
x = {x}
before = set(sys.modules)
layernorm.layer_norm(x)
print("imported:", *({FRAMEWORKS} & (set(sys.modules) - before)))
"""
    assert run([sys.executable, "-c", code]).stdout.split() == ["imported:"]
