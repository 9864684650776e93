"""Which networks there are, and how one is built."""

import importlib
import importlib.util
import warnings
from collections.abc import Sequence

from layernorm.cli.demo.networks.network import Network, Recipe, Weights
from layernorm.cli.import_order import import_triton_before_tensorflow

_PACKAGES = {
    "torch": ("torch",),
    "jax": ("jax", "optax"),
    "tensorflow": ("tensorflow",),
    "keras": ("keras",),
}
"""The packages that each framework's network needs. NumPy's, which needs none, is not listed."""

FRAMEWORKS = tuple(_PACKAGES)

TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
}


def missing_package(framework: str) -> str | None:
    """Name a package that the framework's network needs and that is not installed; else None."""
    missing = (name for name in _PACKAGES[framework] if importlib.util.find_spec(name) is None)
    return next(missing, None)


def check_names(frameworks: Sequence[str]) -> None:
    """Raise ValueError for a framework that has no network here."""
    unknown = [name for name in frameworks if name not in FRAMEWORKS]
    if unknown:
        raise ValueError(
            f"unknown framework {', '.join(unknown)}: expected some of {', '.join(FRAMEWORKS)}, "
            "or none"
        )


def build_network(framework: str, weights: Weights, recipe: Recipe) -> Network:
    """Build the network in "numpy" or in one of FRAMEWORKS, which is imported here.

    Raises: ImportError if the framework is not installed.
    """
    import_triton_before_tensorflow()
    with warnings.catch_warnings():
        # Warnings that a library gives while it is imported do not concern layer norm.
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"layernorm.cli.demo.networks.{framework}")
    network: Network = module.Network(weights, recipe)
    return network
