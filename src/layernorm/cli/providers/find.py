"""Finds the providers that are installed here."""

import importlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from layernorm.cli.import_order import import_triton_before_tensorflow
from layernorm.cli.machine import installed_version
from layernorm.cli.providers.provider import Provider, Unsupported

REQUIRE_PEERS = "LAYERNORM_REQUIRE_PEERS"

_CLASSES = {
    "numpy": ("numpy_formula", "NumpyFormula"),
    "torch": ("pytorch", "Torch"),
    "torch.compile": ("pytorch", "TorchCompiled"),
    "jax": ("jitted", "Jax"),
    "onnxruntime": ("onnx_runtime", "OnnxRuntime"),
    "keras": ("keras_layers", "Keras"),
    "flax": ("jitted", "Flax"),
    "flax.linen": ("jitted", "Linen"),
    "equinox": ("jitted", "Equinox"),
    "tensorflow": ("tensorflow_graph", "TensorFlow"),
}

PEERS = tuple(name for name in _CLASSES if name not in ("tensorflow", "flax.linen"))
"""The peers that are looked for by default.

TensorFlow needs a process without Triton. flax.linen compiles to the same code as flax (nnx).
"""

QUICK_PEERS = tuple(name for name in PEERS if name != "torch.compile")
"""torch.compile takes seconds for every shape."""

_OURS = {
    "numpy": ("ours", "Ours"),
    "torch": ("ours_torch", "OursTorch"),
    "jax": ("ours_jax", "OursJax"),
    "flax": ("ours_jax", "OursFlax"),
    "flax.linen": ("ours_jax", "OursLinen"),
    "equinox": ("ours_jax", "OursEquinox"),
    "keras": ("keras_layers", "OursKeras"),
    "tensorflow": ("tensorflow_graph", "OursTensorFlow"),
}

FRONT_ENDS = tuple(_OURS)

GRADIENT_PEERS = ("torch", "jax")
"""The peers whose gradients are checked too: the others share their kernels or compiler."""


class MissingPeersError(ImportError):
    """LAYERNORM_REQUIRE_PEERS=1 and a peer is missing."""


@dataclass(frozen=True)
class Providers:
    """Ours, the peers found, and for each of the others why it is missing."""

    ours: Provider
    peers: list[Provider]
    missing: dict[str, str]

    @property
    def versions(self) -> dict[str, str]:
        """Version of each provider's distribution."""
        return {each.name: version_of(each) for each in (self.ours, *self.peers)}


def find_providers(
    *, threads: int, names: Sequence[str] = PEERS, front_end: str = "numpy"
) -> Providers:
    """Load one of our front ends and the named peers, each set to use `threads` threads.

    Raises: ValueError for an unknown name; ImportError for a front end whose framework is missing;
    MissingPeersError if the environment has LAYERNORM_REQUIRE_PEERS=1 and a peer is missing.
    """
    unknown = [name for name in names if name not in _CLASSES]
    if unknown:
        raise ValueError(
            f"unknown peer {', '.join(unknown)}: expected some of {', '.join(_CLASSES)}"
        )
    import_triton_before_tensorflow()
    ours = _load(_OURS[front_end], threads)
    peers: list[Provider] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            peers.append(_load(_CLASSES[name], threads))
        except ModuleNotFoundError as error:
            missing[name] = f"not installed (no module {error.name})"
        except (ImportError, Unsupported) as error:
            missing[name] = str(error)
    if missing and os.environ.get(REQUIRE_PEERS) == "1":
        listed = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise MissingPeersError(f"{REQUIRE_PEERS}=1, but {listed}")
    return Providers(ours, peers, missing)


def version_of(provider: Provider) -> str:
    """Version of the distribution that a provider comes from."""
    return installed_version(provider.distribution) or "unknown"


def _load(place: tuple[str, str], threads: int) -> Provider:
    module_name, class_name = place
    with warnings.catch_warnings():
        # Warnings that a library gives while it is imported do not concern layer norm.
        warnings.simplefilter("ignore")
        module = importlib.import_module(f"layernorm.cli.providers.{module_name}")
        provider: Provider = getattr(module, class_name)(threads)
    return provider
