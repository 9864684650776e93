"""How pictures are drawn and saved by the other commands than `inspect`."""

from pathlib import Path
from typing import Any


def open_pyplot() -> Any:
    """Return matplotlib.pyplot, set to draw into files.

    Raises: ImportError where matplotlib is not installed, with the command that installs it.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ImportError(
            "pictures are drawn with matplotlib, which is not installed: "
            "pip install 'layernorm[demo]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, file: Path, *, top: float = 1.0) -> None:
    """Fit the figure below `top`, the rest being for a legend, and write it to a PNG file."""
    figure.tight_layout(rect=(0, 0, 1, top))
    figure.savefig(file, dpi=120)
    open_pyplot().close(figure)
