"""Everything that computes a layer norm here: ours, a NumPy formula, and the installed peers."""

from layernorm.cli.providers.find import (
    FRONT_ENDS,
    GRADIENT_PEERS,
    PEERS,
    MissingPeersError,
    Providers,
    find_providers,
    parse_names,
)
from layernorm.cli.providers.provider import Provider, Unsupported

__all__ = [
    "FRONT_ENDS",
    "GRADIENT_PEERS",
    "PEERS",
    "MissingPeersError",
    "Provider",
    "Providers",
    "Unsupported",
    "find_providers",
    "parse_names",
]
