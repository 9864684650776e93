"""The digits' network in each framework that has a front end.

Each module is named after its framework; its class `Network` implements `network.Network`.
"""

from layernorm.cli.demo.networks.find import (
    FRAMEWORKS,
    TITLES,
    build_network,
    check_names,
    missing_package,
)
from layernorm.cli.demo.networks.network import RECIPES, Network, NormCall, Recipe, Step

__all__ = [
    "FRAMEWORKS",
    "RECIPES",
    "TITLES",
    "Network",
    "NormCall",
    "Recipe",
    "Step",
    "build_network",
    "check_names",
    "missing_package",
]
