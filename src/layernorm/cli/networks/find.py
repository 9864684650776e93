"""Which networks there are."""

import importlib
import importlib.util
import warnings

from layernorm.cli.networks.network import Network, Recipe, Weights

_PACKAGES = {"torch": ("torch",)}
"""What each framework's network needs installed, beside NumPy's, which is always there."""

FRAMEWORKS = tuple(_PACKAGES)


def missing_package(framework: str) -> str | None:
    """Name a package that the framework's network needs and that is not installed."""
    missing = (name for name in _PACKAGES[framework] if importlib.util.find_spec(name) is None)
    return next(missing, None)


def build_network(framework: str, weights: Weights, recipe: Recipe) -> Network:
    """Build the network in "numpy", or in one of FRAMEWORKS, which is imported.

    Raises: ValueError for an unknown framework, ImportError for one that is not installed.
    """
    if framework not in ("numpy", *FRAMEWORKS):
        raise ValueError(
            f"unknown framework {framework}: expected numpy, {', '.join(FRAMEWORKS)} or none"
        )
    with warnings.catch_warnings():
        # What a library warns of while it is imported is no news about layer norm.
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"layernorm.cli.networks.{framework}")
    network: Network = module.Network(weights, recipe)
    return network
