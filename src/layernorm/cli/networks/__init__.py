"""The digits' network, once for each framework that has a front end, from the same weights.

A module here is named after its framework; its class `Network` keeps `network.Network`.
"""

from layernorm.cli.networks.find import FRAMEWORKS, build_network, check_names, missing_package
from layernorm.cli.networks.network import RECIPES, Network, NormCall, Recipe, Step

__all__ = [
    "FRAMEWORKS",
    "RECIPES",
    "Network",
    "NormCall",
    "Recipe",
    "Step",
    "build_network",
    "check_names",
    "missing_package",
]
