"""Who may import whom, what is public, and what every public function says of itself."""

import ast
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import layernorm
import layernorm.accuracy
import layernorm.numpy
import layernorm.reference
import layernorm.spec

PACKAGE = Path(layernorm.__file__).parent
CONFIGURATION = Path(__file__).parents[1] / "pyproject.toml"

PUBLIC = {
    layernorm: {"__version__", "get_num_threads", "layer_norm", "rms_norm", "set_num_threads"},
    layernorm.numpy: {
        *("layer_norm", "layer_norm_forward", "layer_norm_backward", "Stats"),
        *("rms_norm", "rms_norm_forward", "rms_norm_backward"),
        *("LayerNorm", "RMSNorm", "Parameter", "SGD", "Adam"),
    },
}
if importlib.util.find_spec("torch") is not None:
    PUBLIC[importlib.import_module("layernorm.torch")] = {
        *("layer_norm", "rms_norm", "LayerNorm", "RMSNorm", "accelerate", "convert"),
    }
if importlib.util.find_spec("jax") is not None:
    PUBLIC[importlib.import_module("layernorm.jax")] = {"layer_norm", "rms_norm"}
if importlib.util.find_spec("flax") is not None:
    PUBLIC[importlib.import_module("layernorm.flax")] = {"linen", "nnx"}
if importlib.util.find_spec("equinox") is not None:
    PUBLIC[importlib.import_module("layernorm.equinox")] = {"LayerNorm", "RMSNorm"}
# TensorFlow and Keras are imported in processes of their own: tests/keras/inside_backend.py.


def lint_imports(path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Check the rules of pyproject.toml on the package as it is found, `path` first."""
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter import cli; "
    code += f"sys.exit(cli.lint_imports({str(CONFIGURATION)!r}, no_cache=True))"
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


def test_import_rules_are_kept() -> None:
    done = lint_imports()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("spec.py", "import numpy"),
        ("spec.py", "def f():\n    from layernorm.numpy import arrays"),
        ("numpy/functional.py", "from layernorm import reference"),
        ("numpy/layers.py", "import torch"),
        ("dispatch.py", "def f():\n    import jax"),
        ("accuracy.py", "from layernorm.numpy import layer_norm"),
        ("numpy/forward.py", "from layernorm.cli import check"),
        ("numpy/arrays.py", "from layernorm.torch import functional"),
        ("torch/functional.py", "from layernorm import reference"),
        ("torch/layers.py", "import numpy"),
        ("torch/c_api.py", "from layernorm.numpy import layer_norm"),
        ("numpy/arrays.py", "from layernorm.jax import functional"),
        ("jax/functional.py", "from layernorm import reference"),
        ("jax/lowering.py", "from layernorm.numpy import layer_norm"),
        ("jax/formulas.py", "import torch"),
        ("flax/normalize.py", "from layernorm.numpy import layer_norm"),
        ("equinox/layers.py", "import flax"),
        ("torch/functional.py", "from layernorm.tensorflow import functional"),
        ("tensorflow/formula.py", "from layernorm import reference"),
        ("tensorflow/functional.py", "import numpy"),
        ("tensorflow/c_api.py", "from layernorm.keras import layers"),
        ("keras/layers.py", "import tensorflow"),
        ("keras/backends.py", "from layernorm.torch import over_axes"),
        ("triton/forward.py", "import torch"),
        ("triton/sums.py", "from layernorm import spec"),
        ("triton/plan.py", "import triton"),
        ("triton/plan.py", "from layernorm.triton import rows"),
    ],
    ids=lambda text: text.split()[-1],
)
def test_a_planted_import_breaks_the_rules(tmp_path, module, planted) -> None:
    without_caches = shutil.ignore_patterns("__pycache__")
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "layernorm", ignore=without_caches))
    assert lint_imports(tmp_path).returncode == 0
    with (copy / module).open("a") as file:
        file.write(f"\n\n{planted}\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout, done.stdout + done.stderr


def imports_of_the_compiled_module(source: str) -> list[str]:
    """Find them by the syntax: import-linter knows no modules but those in Python."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [name for name in names if name.split(".")[-1] == "_native"]
    return found


@pytest.mark.parametrize("module", ["spec", "reference", "accuracy"])
def test_the_reference_and_its_kin_do_not_import_the_kernels(module) -> None:
    assert imports_of_the_compiled_module((PACKAGE / f"{module}.py").read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import layernorm._native",
        "def f():\n    from layernorm import _native",
        "from layernorm._native import forward",
        "from . import _native",
    ],
)
def test_an_import_of_the_kernels_is_found(planted) -> None:
    assert imports_of_the_compiled_module(planted) != []


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_names_are_those_of_the_init(module: ModuleType) -> None:
    assert set(module.__all__) == PUBLIC[module]
    assert list(module.__all__) == sorted(set(module.__all__), key=module.__all__.index)
    others = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in module.__all__
    }
    modules = {name for name in others if inspect.ismodule(getattr(module, name))}
    assert others == modules


def public_functions() -> list[Callable[..., Any]]:
    functions = [
        value
        for module in PUBLIC
        for name in module.__all__
        if inspect.isroutine(value := getattr(module, name))
    ]
    for module in (layernorm.reference, layernorm.accuracy, layernorm.spec):
        functions += [
            value
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
    return functions


def missing_parts(function: Callable[..., Any]) -> list[str]:
    """Name what a docstring lacks: a sentence, and for the front ends the parts of the style."""
    text = inspect.getdoc(function) or ""
    missing = []
    if not text.split("\n")[0].rstrip(":").endswith((".", ")")):
        missing.append("a first line that is a sentence")
    if function.__module__ and function.__module__.startswith(
        (
            *("layernorm.numpy", "layernorm.torch", "layernorm.jax", "layernorm.dispatch"),
            *("layernorm.tensorflow", "layernorm.keras"),
        )
    ):
        missing += [part for part in ("Args:", "Returns:", "Raises:") if part not in text]
        if "as in" not in text:
            missing += [name for name in inspect.signature(function).parameters if name not in text]
        if function.__name__ in ("layer_norm", "rms_norm") and "Source:" not in text:
            missing.append("Source:")
    if function.__name__ in ("layer_norm", "rms_norm") and "y = " not in text:
        missing.append("y = ")
    if function.__name__.endswith("_backward"):
        missing += [part for part in ("dx", "dweight") if part not in text]
    return missing


@pytest.mark.parametrize(
    "function", public_functions(), ids=lambda f: f"{f.__module__}.{f.__name__}"
)
def test_every_public_function_documents_itself(function) -> None:
    assert missing_parts(function) == []


def test_a_poor_docstring_is_found() -> None:
    def layer_norm(x, eps):
        """Normalizes x"""

    layer_norm.__module__ = "layernorm.numpy.functional"
    expected = ["a first line that is a sentence", "Args:", "Returns:", "Raises:", "eps"]
    assert missing_parts(layer_norm) == [*expected, "Source:", "y = "]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_public_class_and_method_documents_itself(module: ModuleType) -> None:
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            assert inspect.getdoc(value), name
            for method, member in vars(value).items():
                if inspect.isfunction(member) and not method.startswith("_"):
                    assert inspect.getdoc(member), f"{name}.{method}"


def test_the_specification_names_tests_that_there_are() -> None:
    root = CONFIGURATION.parent
    words = re.findall(r"`([^`\n]+)`", (root / "docs" / "specification.md").read_text())
    files = {word for word in words if word.startswith("tests/")}
    assert [each for each in files if not (root / each).exists()] == []
    sources = "\n".join(each.read_text() for each in (root / "tests").rglob("*.py"))
    there = set(re.findall(r"def (test_\w+)", sources))
    named = {word for word in words if word.startswith("test_")}
    assert len(named) > 100
    assert named - there == set()
