"""The pictures: the demo's losses, the benchmark's times. Only this module needs matplotlib."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layernorm.cli.bench import Result
    from layernorm.cli.training import Run

COLUMNS = 2
DASHES = ("--", ":", "-.", (0, (1, 3)))
"""The lines of frameworks that are drawn over each other."""


def plot_losses(runs: Sequence["Run"], file: Path, *, titles: Mapping[str, str]) -> None:
    """Draw, for each run, the training loss of every step and the test accuracy of every epoch.

    NumPy's are wide and pale; those of other frameworks lie thin and dark upon them.
    """
    figure, (losses, accuracies) = _pyplot().subplots(1, 2, figsize=(12, 4.5))
    optimizers = list(dict.fromkeys(each.optimizer for each in runs))
    frameworks = list(dict.fromkeys(each.framework for each in runs))
    for run in runs:
        place = frameworks.index(run.framework)
        style = {
            "label": f"{run.optimizer}, {titles[run.framework]}",
            "color": f"C{optimizers.index(run.optimizer)}" if place == 0 else "black",
            "linewidth": 4 if place == 0 else 0.8,
            "alpha": 0.5 if place == 0 else 0.9,
            "linestyle": "-" if place == 0 else DASHES[(place - 1) % len(DASHES)],
        }
        losses.plot(range(1, len(run.loss) + 1), run.loss, **style)
        accuracies.plot(range(1, len(run.test_accuracy) + 1), run.test_accuracy, **style)
    losses.set(title="training loss", xlabel="step", ylabel="cross-entropy", yscale="log")
    accuracies.set(title="test accuracy", xlabel="epoch")
    accuracies.axhline(0.95, color="grey", linestyle=":", linewidth=1)
    accuracies.xaxis.get_major_locator().set_params(integer=True)
    accuracies.legend(loc="lower right")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
    _save(figure, file)


def plot_times(results: Sequence["Result"], file: Path) -> None:
    """Draw each section: time over ours, a bar for each provider in each cell."""
    sections: dict[str, list[Result]] = {}
    for each in results:
        if each.timing is not None:
            plural = "" if each.threads == 1 else "s"
            title = f"{each.cell.section}, {each.threads} thread{plural}"
            sections.setdefault(title, []).append(each)
    rows = math.ceil(len(sections) / COLUMNS)
    figure, grid = _pyplot().subplots(
        rows, COLUMNS, figsize=(7 * COLUMNS, 3.4 * rows), squeeze=False
    )
    colors = _colors(results)
    for axes, (title, section) in zip(grid.flat, sections.items(), strict=False):
        _draw_section(axes, title, section, colors)
    for axes in grid.flat[len(sections) :]:
        axes.axis("off")
    handles = [_pyplot().Rectangle((0, 0), 1, 1, color=color) for color in colors.values()]
    figure.legend(handles, list(colors), loc="upper center", ncols=min(len(colors), 10))
    _save(figure, file, top=1 - 0.45 / (3.4 * rows))


def _draw_section(
    axes: Any, title: str, section: Sequence["Result"], colors: Mapping[str, str]
) -> None:
    labels = list(dict.fromkeys(each.cell.label for each in section))
    providers = list(dict.fromkeys(each.provider for each in section))
    ours = {each.cell.label: each for each in section if each.provider == "layernorm"}
    width = 0.85 / len(providers)
    for each in section:
        reference = ours.get(each.cell.label)
        if reference is None or reference.timing is None or each.timing is None:
            continue
        # By speed, so that the copy of a backward, which moves less, is compared fairly.
        height = reference.gigabytes_a_second / each.gigabytes_a_second
        place = labels.index(each.cell.label) + (providers.index(each.provider) + 0.5) * width
        # From the line that is ours: what is faster hangs below it.
        axes.bar(place - 0.425, height - 1, width, bottom=1, color=colors[each.provider])
    axes.axhline(1, color=colors["layernorm"], linewidth=2)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title=title, ylabel="time / ours", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_minor_formatter("")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.5), max(high, 12))
    axes.grid(axis="y", alpha=0.3)


def _colors(results: Sequence["Result"]) -> dict[str, str]:
    providers = list(dict.fromkeys(each.provider for each in results))
    palette = ["#999999", "#2ca02c", *(f"C{index}" for index in (0, 1, 3, 4, 5, 6, 8, 9))]
    ordered = sorted(providers, key=lambda name: {"copy": 0, "layernorm": 1}.get(name, 2))
    return {name: palette[index % len(palette)] for index, name in enumerate(ordered)}


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit(
            "layernorm: plots are drawn with matplotlib, which is not installed: "
            "pip install 'layernorm[demo]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, file: Path, *, top: float = 1.0) -> None:
    figure.tight_layout(rect=(0, 0, 1, top))
    figure.savefig(file, dpi=120)
    _pyplot().close(figure)
