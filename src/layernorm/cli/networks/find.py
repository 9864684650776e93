"""Which networks there are."""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Sequence

from layernorm.cli.import_order import import_triton_before_tensorflow
from layernorm.cli.networks.network import Network, Recipe, Weights

_PACKAGES = {
    "torch": ("torch",),
    "jax": ("jax", "optax"),
    "tensorflow": ("tensorflow",),
    "keras": ("keras",),
}
"""What each framework's network needs installed, beside NumPy's, which is always there."""

FRAMEWORKS = tuple(_PACKAGES)


def missing_package(framework: str) -> str | None:
    """Name a package that the framework's network needs and that is not installed."""
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
    """Build the network in "numpy", or in one of FRAMEWORKS, which is imported.

    Raises: ImportError for one that is not installed.
    """
    import_triton_before_tensorflow()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # all but two of TensorFlow's greetings
    with warnings.catch_warnings():
        # What a library warns of while it is imported is no news about layer norm.
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"layernorm.cli.networks.{framework}")
    network: Network = module.Network(weights, recipe)
    return network
