"""Draws the losses and accuracies of the demo's training."""

from collections.abc import Sequence
from pathlib import Path

from layernorm.cli.demo.networks import TITLES
from layernorm.cli.demo.training import Run
from layernorm.cli.pictures import open_pyplot, save

DASHES = ("--", ":", "-.", (0, (1, 3)))
"""The lines of frameworks that are drawn over each other."""


def plot_losses(runs: Sequence[Run], file: Path) -> None:
    """Draw, for each run, the training loss of every step and the test accuracy of every epoch.

    The first framework's lines are wide and pale, the others' thin and dark on top of them.
    """
    figure, (losses, accuracies) = open_pyplot().subplots(1, 2, figsize=(12, 4.5))
    optimizers = list(dict.fromkeys(each.optimizer for each in runs))
    frameworks = list(dict.fromkeys(each.framework for each in runs))
    for run in runs:
        place = frameworks.index(run.framework)
        style = {
            "label": f"{run.optimizer}, {TITLES[run.framework]}",
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
    save(figure, file)
