"""Everything that computes a norm here: ours, a NumPy formula, and the installed peers."""

from layernorm.cli.providers.find import (
    FRONT_ENDS,
    GRADIENT_PEERS,
    PEERS,
    QUICK_PEERS,
    MissingPeersError,
    Providers,
    find_providers,
)
from layernorm.cli.providers.provider import Provider, Unsupported, first_line

__all__ = [
    "FRONT_ENDS",
    "GRADIENT_PEERS",
    "PEERS",
    "QUICK_PEERS",
    "MissingPeersError",
    "Provider",
    "Providers",
    "Unsupported",
    "find_providers",
    "first_line",
]
