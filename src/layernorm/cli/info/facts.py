"""What `layernorm info` shows."""

import importlib.util
from dataclasses import dataclass
from typing import Any

import layernorm
from layernorm.cli.machine import describe_machine, installed_version

FRAMEWORKS = (
    "numpy",
    "ml_dtypes",
    "torch",
    "jax",
    "flax",
    "equinox",
    "tensorflow",
    "keras",
    "onnxruntime",
    "triton",
)


@dataclass(frozen=True)
class Framework:
    """A package, its version if it is installed, and our front end for it if there is one."""

    name: str
    version: str | None
    front_end: str | None


@dataclass(frozen=True)
class Facts:
    """This package, this machine, and the frameworks beside them."""

    version: str
    threads: int
    machine: dict[str, Any]
    frameworks: list[Framework]


def collect() -> Facts:
    """Collect the facts. Imports no framework."""
    return Facts(
        version=layernorm.__version__,
        threads=layernorm.get_num_threads(),
        machine=describe_machine(),
        frameworks=[Framework(each, installed_version(each), _front_end(each))
                    for each in FRAMEWORKS],
    )  # fmt: skip


def _front_end(framework: str) -> str | None:
    module = f"layernorm.{framework}"
    return module if importlib.util.find_spec(module) is not None else None
