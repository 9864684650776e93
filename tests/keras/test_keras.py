"""The Keras front end on each backend, in a process of its own (see own_process.py)."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from own_process import TESTS, run, run_tests

if importlib.util.find_spec("keras") is None:
    pytest.skip("could not import keras", allow_module_level=True)

# Where the Makefile puts Keras's source distribution.
SDISTS = sorted(Path(sys.prefix, "share", "keras").glob("keras-*.tar.gz"))

BACKENDS = ("jax", "numpy", "tensorflow", "torch")


def require(backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"could not import {backend}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_and_functions(backend) -> None:
    require(backend)
    environment = {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    assert run_tests("keras/inside_backend.py", environment=environment) >= 50


@pytest.mark.parametrize("backend", [each for each in BACKENDS if each != "numpy"])
def test_the_page(backend) -> None:
    require(backend)
    environment = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    assert run_tests("keras/inside_page.py", environment=environment) == 1


def test_what_is_public_documents_itself() -> None:
    require("tensorflow")
    environment = {"KERAS_BACKEND": "tensorflow"}
    assert run_tests("keras/inside_architecture.py", environment=environment) == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_kerass_own_tests_pass_on_our_layers(backend) -> None:
    require(backend)
    if not SDISTS:
        pytest.skip(
            "could not import Keras's tests: pip download --no-binary :all: --no-deps keras, into "
            f"{Path(sys.prefix, 'share', 'keras')}"
        )
    command = [sys.executable, str(TESTS / "keras" / "foreign_suite.py"), str(SDISTS[-1])]
    done = run(command, environment={"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"})
    assert re.search(r"\d+ failed|\d+ error|\d+ skipped", done.stdout) is None
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 11
