"""Who may import whom, what is public, and what every public docstring has."""

import contextlib
import copy
import graphlib
import importlib.util
import inspect
import shutil
import sys
from collections.abc import Callable, Iterator
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

QUANTIZED = {"quantized_layer_norm", "quantized_rms_norm"}
PUBLIC = {
    layernorm: {
        *("__version__", "get_num_threads", "set_num_threads"),
        *("layer_norm", "rms_norm", *QUANTIZED),
    },
    layernorm.numpy: {
        *("layer_norm", "layer_norm_forward", "layer_norm_backward", "Stats"),
        *("rms_norm", "rms_norm_forward", "rms_norm_backward", *QUANTIZED),
        *("LayerNorm", "RMSNorm", "Parameter", "SGD", "Adam"),
    },
}
if importlib.util.find_spec("torch") is not None:
    PUBLIC[importlib.import_module("layernorm.torch")] = {
        *(
            "layer_norm",
            "rms_norm",
            "LayerNorm",
            "RMSNorm",
            "accelerate",
            "convert",
            *QUANTIZED,
            "inspect",
        ),
    }
if importlib.util.find_spec("jax") is not None:
    PUBLIC[importlib.import_module("layernorm.jax")] = {"layer_norm", "rms_norm", *QUANTIZED}
if importlib.util.find_spec("flax") is not None:
    PUBLIC[importlib.import_module("layernorm.flax")] = {"inspect", "linen", "nnx"}
if importlib.util.find_spec("equinox") is not None:
    PUBLIC[importlib.import_module("layernorm.equinox")] = {"LayerNorm", "RMSNorm"}
# TensorFlow and Keras are imported in processes of their own: tests/keras/inside_backend.py.


def broken_rules() -> list[str]:
    """Name the import rules of pyproject.toml that the package breaks."""
    grimp = pytest.importorskip("grimp")
    from importlinter.api import read_configuration

    imports = grimp.build_graph("layernorm", include_external_packages=True, cache_dir=None)
    configuration = read_configuration(str(CONFIGURATION))
    session = configuration["session_options"]
    broken = []
    for options in configuration["contracts_options"]:
        kind = options["type"]
        contract_type = getattr(
            importlib.import_module(f"importlinter.contracts.{kind}"), f"{kind.title()}Contract"
        )
        contract = contract_type(options["name"], session, options)
        if not contract.check(copy.deepcopy(imports), verbose=False).kept:
            broken.append(contract.name)
    return broken


def test_import_rules_are_kept() -> None:
    assert broken_rules() == []


@pytest.fixture(scope="module")
def package_copy(tmp_path_factory) -> Path:
    return Path(
        shutil.copytree(
            PACKAGE,
            tmp_path_factory.mktemp("copy") / "layernorm",
            ignore=shutil.ignore_patterns("__pycache__", "*.so"),
        )
    )


@pytest.fixture
def the_copy_is_found(package_copy, monkeypatch) -> None:
    """Have importlib, and by it grimp, find the copy under the package's name."""
    spec = importlib.util.spec_from_file_location("layernorm", package_copy / "__init__.py")
    monkeypatch.setitem(sys.modules, "layernorm", importlib.util.module_from_spec(spec))


@contextlib.contextmanager
def added(planted: str, file: Path) -> Iterator[None]:
    source = file.read_text()
    file.write_text(f"{source}\n\n{planted}\n")
    try:
        yield
    finally:
        file.write_text(source)


def test_import_rules_are_kept_in_the_copy(the_copy_is_found) -> None:
    assert broken_rules() == []


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
        ("triton/launch_config.py", "import triton"),
        ("triton/launch_config.py", "from layernorm.triton import rows"),
        ("numpy/arrays.py", "from layernorm.triton import launch_config"),
        ("__init__.py", "from layernorm import reference"),
        ("numpy/layers.py", "import rich"),
        ("reference.py", "from layernorm import layer_norm"),
        # The kernels.
        ("reference.py", "import layernorm._native"),
        ("accuracy.py", "def f():\n    from layernorm import _native"),
        ("spec.py", "from layernorm._native import forward"),
        ("spec.py", "from . import _native"),
    ],
    ids=lambda text: text.split()[-1],
)
def test_a_planted_import_breaks_the_rules(
    package_copy, the_copy_is_found, module, planted
) -> None:
    with added(planted, package_copy / module):
        assert broken_rules() != []


def circle_of_imports() -> list[str]:
    """Return modules that import each other in a circle; lazy and typing imports count."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("layernorm", cache_dir=None)

    def imports(module: str) -> Iterator[str]:
        for imported in graph.find_modules_directly_imported_by(module):
            lines = graph.get_import_details(importer=module, imported=imported)
            # _native is compiled, so an import of it counts as one of layernorm/__init__.py.
            if not all("_native" in each["line_contents"] for each in lines):
                yield imported

    try:
        graphlib.TopologicalSorter({each: imports(each) for each in graph.modules}).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle_of_imports() == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("cli/bench/results.py", "from layernorm.cli.bench import tables"),
        ("cli/bench/results.py", "def f():\n    from layernorm.cli.bench.tables import Table"),
        ("cli/check/results.py", "if TYPE_CHECKING:\n    from layernorm.cli.check import tables"),
        ("numpy/functional.py", "import layernorm.numpy.layers"),
        ("numpy/functional.py", "import layernorm"),
    ],
    ids=lambda text: text.split()[-1],
)
def test_a_planted_circle_is_found(package_copy, the_copy_is_found, module, planted) -> None:
    with added(planted, package_copy / module):
        assert module.removesuffix(".py").replace("/", ".") in " ".join(circle_of_imports())


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
