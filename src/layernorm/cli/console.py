"""Where the commands print: a rich console, or plain JSON."""

import json
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def open_console() -> "Console":
    """Return the console that tables go to.

    Raises: SystemExit where rich is not installed, with the command that installs it.
    """
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        raise SystemExit(
            "layernorm: the tables are printed with rich, which is not installed: "
            "pip install 'layernorm[demo]', or pass --json"
        ) from None
    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print `value` as strict JSON: an infinite or undefined error becomes a string."""
    json.dump(strict_json(value), sys.stdout, indent=2, allow_nan=False)
    print()


def strict_json(value: Any) -> Any:
    """Turn `value` into what strict JSON can hold: infinities and NaN become strings."""
    if isinstance(value, dict):
        return {key: strict_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
