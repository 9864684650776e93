"""The tables of `layernorm info`."""

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from layernorm.cli.info.facts import Facts

if TYPE_CHECKING:
    from rich.console import Console


def print_facts(found: Facts, console: "Console") -> None:
    """Print the machine, then the frameworks."""
    machine = found.machine
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("layernorm", found.version)
    facts.add_row("processor", f"{machine['processor']} ({machine['architecture']})")
    others = [isa for isa in machine["isas"] if isa != machine["isa"]]
    rest = f"   (LAYERNORM_ISA selects another: {', '.join(others)})" if others else ""
    facts.add_row("instructions", f"{machine['isa']}{rest}")
    facts.add_row("threads", f"{found.threads} of {machine['usable_processors']} usable processors")
    sizes = ", ".join(f"{cache['name']} {readable(cache['bytes'])}" for cache in machine["caches"])
    facts.add_row("caches", sizes or "unknown")
    facts.add_row("system", f"{machine['system']}, Python {machine['python']}")
    console.print(facts)

    frameworks = Table(box=box.SIMPLE, title="frameworks", title_justify="left")
    for heading in ("name", "version", "front end"):
        frameworks.add_column(heading)
    for each in found.frameworks:
        if each.version is not None or each.front_end is not None:
            frameworks.add_row(each.name, each.version or "-", each.front_end or "-")
    console.print(frameworks)
    missing = [each.name for each in found.frameworks if each.version is None]
    if missing:
        console.print(f"not installed: {', '.join(missing)}", style="dim")


def readable(size: int) -> str:
    """Write a number of bytes as people read it: 32768 -> "32 KiB"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} B"
