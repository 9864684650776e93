"""The notebooks of examples/lesson/, with the outputs that `make lesson` computed."""

from pathlib import Path

from sphinx.application import Sphinx

EXECUTED = Path(__file__).parents[2] / "build" / "lesson"


def use_executed(app: Sphinx, page: str, content: list[str]) -> None:
    """Read the executed copy of a notebook in its place."""
    if page.startswith("examples/lesson/"):
        content[0] = (EXECUTED / f"{Path(page).name}.ipynb").read_text()


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen for sources."""
    app.connect("source-read", use_executed)
    return {"parallel_read_safe": True}
