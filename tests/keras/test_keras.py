"""The Keras front end, on each backend in a process of its own (see own_process.py)."""

import importlib.util
import json
from pathlib import Path

import pytest
from own_process import run_script, run_tests

if importlib.util.find_spec("keras") is None:
    pytest.skip("could not import keras", allow_module_level=True)


# Programs are compiled in haste: what they compute by themselves is judged in tests/jax.
OF_JAX = {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
OF_JAX |= {"XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}


@pytest.mark.parametrize(
    ("backend", "tests"), [("jax", 318), ("tensorflow", 326), ("torch", 304), ("numpy", 282)]
)
def test_inside(backend, tests) -> None:
    """One process for all files: Keras and its backend take long to start."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"could not import {backend}")
    environment = {"KERAS_BACKEND": backend} | (OF_JAX if backend == "jax" else {})
    files = (f"keras/inside_{each}.py" for each in ("backend", "conversion", "inspection"))
    assert run_tests(*files, timeout=900, **environment)["passed"] >= tests


def test_layers_on_jax_train_where_the_normalized_axis_is_split_over_devices() -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("could not import jax")
    found = json.loads(
        run_script(
            Path(__file__).parents[1] / "support" / "keras_sharded.py",
            KERAS_BACKEND="jax",
            JAX_PLATFORMS="cpu",
            XLA_FLAGS="--xla_force_host_platform_device_count=8",
        )
    )
    assert max(found["differences"]) < 1e-5
    assert {"layer_norm/gamma", "layer_norm/beta", "rms_norm/scale"} <= set(found["split"])
    # Five numbers for each row and part of it, at most: no device gets whole rows.
    assert found["numbers_gathered"]
    assert max(found["numbers_gathered"]) < found["numbers_in_x"]
