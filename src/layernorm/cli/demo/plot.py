"""Draws the losses and accuracies of the demo's training."""

from collections.abc import Sequence
from pathlib import Path

from layernorm.cli.demo.networks import TITLES
from layernorm.cli.demo.training import Run
from layernorm.cli.pictures import open_pyplot, save

DASH = 3
"""Length of a dash, in widths of the line."""


def plot_losses(runs: Sequence[Run], file: Path) -> None:
    """Draw, for each run, the training loss of every step and the test accuracy of every epoch.

    The first framework's lines are wide and pale. On them lie the others', dashed such that a dash
    of each is seen in turn where their curves coincide.
    """
    figure, (losses, accuracies) = open_pyplot().subplots(1, 2, figsize=(12, 4.5))
    optimizers = list(dict.fromkeys(each.optimizer for each in runs))
    first, *others = dict.fromkeys(each.framework for each in runs)
    for run in runs:
        if run.framework == first:
            color = f"C{optimizers.index(run.optimizer)}"
            label = f"{TITLES[first]}, {run.optimizer}"
            style = {"color": color, "linewidth": 5, "alpha": 0.4, "label": label}
        else:
            place = others.index(run.framework)
            dashes = (DASH * place, (DASH, DASH * (len(others) - 1))) if len(others) > 1 else "--"
            style = {"color": f"C{len(optimizers) + place}", "linewidth": 1.8, "linestyle": dashes}
            if run.optimizer == optimizers[0]:
                style["label"] = TITLES[run.framework]
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
