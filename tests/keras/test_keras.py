"""The Keras front end, on each backend in a process of its own (see own_process.py)."""

import importlib.util

import pytest
from own_process import run_tests

if importlib.util.find_spec("keras") is None:
    pytest.skip("could not import keras", allow_module_level=True)


@pytest.mark.parametrize(
    ("backend", "tests"), [("jax", 305), ("tensorflow", 309), ("torch", 291), ("numpy", 271)]
)
def test_inside(backend, tests) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"could not import {backend}")
    environment = {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    files = [f"keras/inside_{name}.py" for name in ("backend", "conversion")]
    assert run_tests(*files, timeout=900, **environment)["passed"] >= tests
