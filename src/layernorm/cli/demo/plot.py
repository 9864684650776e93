"""Draws the demo's training: losses, accuracies, and what the layer norms learned and did."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from layernorm.cli.demo import statistics
from layernorm.cli.demo.digits import SIZES, Digits
from layernorm.cli.demo.networks import TITLES
from layernorm.cli.demo.networks.network import Array
from layernorm.cli.demo.training import GOAL, Run
from layernorm.cli.pictures import open_pyplot, save

DASH = 3
"""Length of a dash, in widths of the line."""

# Okabe and Ito's colors, which color-blind readers can tell apart.
OPTIMIZERS = ("#0072B2", "#E69F00")
FRAMEWORKS = ("#000000", "#56B4E9", "#009E73", "#D55E00")
ENTERING, NORMALIZED, LEAVING = "#777777", "#CC79A7", "#009E73"
RIGHT, WRONG = "#009E73", "#D55E00"
GRAY = "#555555"

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 20,  # leaves a line for the subtitle
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}

PANELS = [
    ["loss", "loss", "accuracy", "accuracy"],
    ["weight 1", "weight 2", "bias 1", "bias 2"],
    ["entering", "normalized", "leaving", "rows"],
    ["digits", "digits", "digits", "digits"],
]
HEIGHTS = (1.1, 1, 1, 0.42)
SIZE = (12, 10)  # in inches


def draw_training(runs: Sequence[Run], data: Digits, file: Path) -> None:
    """Draw the losses and accuracies of all runs, and the layer norms of those in NumPy.

    The first run is in NumPy; the activations and the answers are its own.
    """
    pyplot = open_pyplot()
    in_numpy = [run for run in runs if run.framework == "numpy"]
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplot_mosaic(PANELS, figsize=SIZE, height_ratios=HEIGHTS)
        _draw_heading(figure, data)
        _draw_losses(panels["loss"], runs)
        _draw_accuracies(panels["accuracy"], runs)
        for place in (0, 1):
            _draw_parameter(panels[f"weight {place + 1}"], in_numpy, place, "weight")
            _draw_parameter(panels[f"bias {place + 1}"], in_numpy, place, "bias")
        _share_limits(panels["weight 1"], panels["weight 2"])
        _share_limits(panels["bias 1"], panels["bias 2"])
        _draw_activations(panels, in_numpy[0])
        _draw_digits(panels["digits"], in_numpy[0], data)
        save(figure, file)


def _draw_heading(figure: Any, data: Digits) -> None:
    title = f"A network with {len(SIZES) - 2} layer norms learns to read handwritten digits"
    subtitle = (
        f"linear layers {'-'.join(map(str, SIZES))}, each but the last followed by a layer norm "
        f"and ReLU; {len(data.train_images):,} images to train on, {len(data.test_images)} to test"
    )
    figure.suptitle(f"{title}\n", x=0.012, y=0.99, ha="left", size=15, weight="bold")
    figure.text(0.012, 0.955, subtitle, color=GRAY, size=11)


def _draw_losses(axes: Any, runs: Sequence[Run]) -> None:
    for run, style in zip(runs, _styles(runs), strict=True):
        epochs = len(run.test_accuracy)
        if run.framework == "numpy":
            steps = np.linspace(0, epochs, len(run.loss))
            axes.plot(steps, run.loss, color=style["color"], linewidth=0.6, alpha=0.6)
        axes.plot(np.arange(epochs) + 0.5, statistics.epoch_means(run.loss, epochs), **style)
    _title(axes, "Training loss", "thin: each step; thick: mean of each epoch")
    axes.set(yscale="log", ylabel="cross-entropy")
    _set_epochs(axes, epochs)
    others = [run for run in runs if run.framework != "numpy"]
    if others:
        in_numpy = {run.optimizer: run for run in runs if run.framework == "numpy"}
        largest = max(run.largest_difference(in_numpy[run.optimizer]) for run in others)
        note = (
            f"Other frameworks beside NumPy: losses within {largest:.0e},\n"
            f"other bits in {sum(run.other_bits for run in others):,} "
            f"of {sum(run.norm_outputs for run in others):,} outputs of layer norms"
        )
        axes.text(1, 1, note, transform=axes.transAxes, ha="right", va="top", color=GRAY)


def _draw_accuracies(axes: Any, runs: Sequence[Run]) -> None:
    for run, style in zip(runs, _styles(runs), strict=True):
        axes.plot(range(1, len(run.test_accuracy) + 1), run.test_accuracy, **style)
    epochs = len(runs[0].test_accuracy)
    last = " and ".join(
        f"{run.test_accuracy[-1]:.1%} with {run.optimizer.split(',')[0]}"
        for run in runs
        if run.framework == "numpy"
    )
    _title(axes, "Test accuracy", f"{last} after epoch {epochs}")
    axes.axhline(GOAL, color=GRAY, linestyle=":")
    axes.text(1, GOAL, "goal ", transform=axes.get_yaxis_transform(), ha="right", va="top")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _set_epochs(axes, epochs)
    several = len({run.framework for run in runs}) > 1
    axes.legend(loc="lower right", ncols=2 if several else 1, handlelength=3.5)


def _styles(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return how each run's line is drawn.

    The first framework's lines are wide and pale. On them lie the others', dashed such that a dash
    of each is seen in turn where their curves coincide.
    """
    optimizers = list(dict.fromkeys(each.optimizer for each in runs))
    first, *others = dict.fromkeys(each.framework for each in runs)
    styles = []
    for run in runs:
        style: dict[str, Any]
        if run.framework == first:
            color = OPTIMIZERS[optimizers.index(run.optimizer)]
            label = f"{TITLES[first]}, {run.optimizer}"
            style = {"color": color, "linewidth": 5, "alpha": 0.5, "label": label}
        else:
            place = others.index(run.framework)
            dashes = (DASH * place, (DASH, DASH * (len(others) - 1))) if len(others) > 1 else "--"
            style = {"color": FRAMEWORKS[place], "linewidth": 1.8, "linestyle": dashes}
            if run.optimizer == optimizers[0]:
                style["label"] = TITLES[run.framework]
        if len(run.test_accuracy) == 1:
            # A line needs two points.
            style |= {"marker": "o", "markersize": 2 * style["linewidth"], "clip_on": False}
        styles.append(style)
    return styles


def _draw_parameter(
    axes: Any, runs: Sequence[Run], place: int, name: Literal["weight", "bias"]
) -> None:
    """Draw a line for each element of the parameter in each run."""
    histories = [run.parameter_history(place, name) for run in runs]
    # The runs take turns: else the last would cover the first.
    for elements in zip(*(history.T for history in histories), strict=True):
        for color, element in zip(OPTIMIZERS, elements, strict=False):
            axes.plot(element, color=color, linewidth=0.7, alpha=0.45)
    start, symbol = {
        "weight": (1, "\N{GREEK SMALL LETTER GAMMA}"),
        "bias": (0, "\N{GREEK SMALL LETTER BETA}"),
    }[name]
    axes.axhline(start, color="black", linewidth=1)
    last = np.stack([history[-1] for history in histories])
    _title(
        axes,
        f"{name.capitalize()} {symbol} of layer norm {place + 1}",
        f"starts at {start}, ends at {last.min():.2f} to {last.max():.2f}",
    )
    _set_epochs(axes, len(histories[0]) - 1)


def _draw_activations(panels: Mapping[str, Any], run: Run) -> None:
    """Draw what enters and leaves the last layer norm, where the images differ most."""
    place = len(run.test_norm_calls) - 1
    entering, normalized, leaving = (
        statistics.row_statistics(rows) for rows in statistics.stages(run.test_norm_calls[place])
    )
    order = entering.std.argsort()
    _draw_rows(panels["entering"], entering, order, ENTERING)
    _title(
        panels["entering"], f"Entering layer norm {place + 1}", "each image: mean, ±std, 5 to 95%"
    )
    panels["entering"].set(xlabel="test images, sorted by std", ylabel="activations")
    _draw_rows(panels["normalized"], normalized, order, NORMALIZED)
    _title(panels["normalized"], "Normalized", "each image has mean 0, std 1")
    _draw_rows(panels["leaving"], leaving, order, LEAVING)
    _title(panels["leaving"], f"Leaving layer norm {place + 1}", "times weight, plus bias")
    _share_limits(panels["entering"], panels["normalized"], panels["leaving"])
    axes = panels["rows"]
    axes.scatter(entering.mean, entering.std, color=ENTERING, s=8, alpha=0.5, label="entering")
    axes.scatter(leaving.mean, leaving.std, color=LEAVING, s=8, alpha=0.5, label="leaving")
    axes.scatter(normalized.mean, normalized.std, color=NORMALIZED, s=50, label="normalized")
    axes.set_title("Each image's mean and std")
    axes.set(xlabel="mean", ylabel="std")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.1, 0.97), ncols=3, handletextpad=-0.4,
        columnspacing=0.4, borderpad=0,
    )  # fmt: skip


def _draw_rows(axes: Any, rows: statistics.RowStatistics, order: Array, color: str) -> None:
    mean, std, low, high = (each[order] for each in rows)
    images = np.arange(len(order))
    axes.fill_between(images, low, high, color=color, alpha=0.25, linewidth=0)
    axes.fill_between(images, mean - std, mean + std, color=color, alpha=0.5, linewidth=0)
    axes.plot(images, mean, color="black", linewidth=1)
    axes.set(xlabel="test images in the same order", xlim=(0, len(order) - 1))


def _draw_digits(axes: Any, run: Run, data: Digits) -> None:
    """Draw test images over the answers of the network: one of each digit, and misread ones."""
    answers = run.test_answers
    right, wrong = statistics.images_to_show(answers, data.test_labels, most_wrong=8)
    shown = np.concatenate([right, wrong])
    tiles = data.test_images[shown].reshape(-1, 8, 8)
    axes.imshow(np.hstack(list(np.pad(tiles, ((0, 0), (1, 0), (1, 1))))), cmap="gray_r")
    for place, image in enumerate(shown):
        answer, label = answers[image], data.test_labels[image]
        color, text = (RIGHT, f"{answer}") if answer == label else (WRONG, f"{answer}\nnot {label}")
        axes.text(10 * place + 4.5, 9.5, text, color=color, ha="center", va="top", weight="bold")
    misread = (answers != data.test_labels).sum()
    _title(
        axes,
        f"Answers to test images after training with {run.optimizer}",
        f"{len(answers) - misread} read right (the first of each digit shown), "
        f"{misread} misread ({len(wrong)} shown)",
    )
    axes.axis("off")
    axes.set_anchor("W")


def _title(axes: Any, title: str, subtitle: str) -> None:
    axes.set_title(title)
    text = axes.text(0, 1, f"{subtitle}\n", transform=axes.transAxes, color=GRAY, va="center")
    text.set_in_layout(False)  # it may be wider than the panel


def _set_epochs(axes: Any, epochs: int) -> None:
    axes.set(xlabel="epoch", xlim=(0, epochs))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _share_limits(*panels: Any) -> None:
    low, high = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(low), max(high))
