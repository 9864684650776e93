"""`layernorm info`: what runs here, on what, and for whom."""

import importlib.metadata
import importlib.util
from typing import TYPE_CHECKING, Any

import layernorm
from layernorm.cli.machine import describe_machine

if TYPE_CHECKING:
    from rich.console import Console

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


def describe() -> dict[str, Any]:
    """Collect what `layernorm info` shows. Imports no framework."""
    return {
        "version": layernorm.__version__,
        "threads": layernorm.get_num_threads(),
        **describe_machine(),
        "frameworks": [
            {"name": name, "version": installed_version(name), "front_end": _front_end(name)}
            for name in FRAMEWORKS
        ],
    }


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, without importing it; None if it is not installed."""
    # TensorFlow for the CPU alone is a distribution of its own.
    names = (distribution, "tensorflow-cpu") if distribution == "tensorflow" else (distribution,)
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _front_end(framework: str) -> str | None:
    module = f"layernorm.{framework}"
    return module if importlib.util.find_spec(module) is not None else None


def show(found: dict[str, Any], console: "Console") -> None:
    """Print what `describe` collected."""
    from rich import box
    from rich.table import Table

    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("layernorm", found["version"])
    facts.add_row("processor", f"{found['processor']} ({found['architecture']})")
    others = [isa for isa in found["isas"] if isa != found["isa"]]
    rest = f"   (also runs {', '.join(others)}: LAYERNORM_ISA)" if others else ""
    facts.add_row("instructions", f"{found['isa']}{rest}")
    facts.add_row(
        "threads", f"{found['threads']} of {found['usable_processors']} usable processors"
    )
    sizes = ", ".join(f"{cache['name']} {readable(cache['bytes'])}" for cache in found["caches"])
    facts.add_row("caches", sizes or "unknown")
    facts.add_row("system", f"{found['system']}, Python {found['python']}")
    console.print(facts)

    frameworks = Table(box=box.SIMPLE, title="frameworks", title_justify="left")
    for heading in ("name", "version", "served by"):
        frameworks.add_column(heading)
    for each in found["frameworks"]:
        if each["version"] is None and each["front_end"] is None:
            continue
        frameworks.add_row(each["name"], each["version"] or "-", each["front_end"] or "-")
    console.print(frameworks)
    missing = [each["name"] for each in found["frameworks"] if each["version"] is None]
    if missing:
        console.print(f"not installed: {', '.join(missing)}", style="dim")


def readable(size: int) -> str:
    """Write a number of bytes as people read it: 32768 -> "32 KiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} B"
