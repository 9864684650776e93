"""What `layernorm demo` prints: the training, other frameworks beside it, the snippets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from layernorm.cli.console import make_table
from layernorm.cli.demo import digits
from layernorm.cli.demo.networks import TITLES, missing_package
from layernorm.cli.demo.snippets import SNIPPETS, session
from layernorm.cli.demo.training import Run

if TYPE_CHECKING:
    from rich.console import Console


def print_title(text: str, console: "Console") -> None:
    """Print a heading."""
    console.print()
    console.rule(f"[bold]{text}", align="left")


def print_data(data: digits.Digits, console: "Console") -> None:
    """Print the sizes of the data and of the network."""
    console.print(
        f"{len(data.train_images)} images to train on, {len(data.test_images)} to test; "
        f"linear layers {'-'.join(map(str, digits.SIZES))}, each but the last followed by "
        f"LayerNorm and ReLU; batches of {digits.BATCH_SIZE}"
    )


def print_epoch(number: int, epoch: digits.Epoch, console: "Console") -> None:
    """Print the first epochs and every fifth."""
    if number in (1, 2, 3) or number % 5 == 0:
        console.print(
            f"  epoch {number:2}: loss {np.mean(epoch.losses):.4f}, "
            f"test accuracy {epoch.test_accuracy:.1%}"
        )


def print_parameters(run: Run, console: "Console") -> None:
    """Print how long a run took, and what its layer norms learned."""
    console.print(f"  {len(run.loss)} steps in {run.seconds:.1f} s; the layer norms learned:")
    rows = [
        [each["name"], *(f"{each[key]:+.3f}" for key in ("min", "mean", "max")),
         f"{each['moved']:.3f}"]
        for each in run.parameters
    ]  # fmt: skip
    console.print(make_table(["", "min", "mean", "max", "distance from start"], rows))


def print_comparison(runs: Sequence[Run], console: "Console") -> None:
    """Print the runs of other frameworks beside NumPy's of the same recipe."""
    in_numpy = {each.optimizer: each for each in runs if each.framework == "numpy"}
    others = [each for each in runs if each.framework != "numpy"]
    if not others:
        return
    console.print("\nThe same network, weights and batches in other frameworks, beside NumPy:")
    rows = [
        [f"{TITLES[each.framework]}, {each.optimizer.split(',')[0]}",
         f"{each.test_accuracy[-1]:.1%}",
         f"{each.largest_difference(in_numpy[each.optimizer]):.1e}",
         f"{each.norm_outputs:,}", str(each.other_bits)]
        for each in others
    ]  # fmt: skip
    console.print(make_table(["", "accuracy", "loss differs by", "outputs", "other bits"], rows))
    console.print(
        "(Loss: the largest difference in any step, from the rounding of matrix products. Outputs: "
        "how many numbers the layer norms returned. Other bits: how many of these are not bit for "
        "bit what layernorm.numpy returns for the same x, weight and bias.)"
    )


def print_snippets(console: "Console") -> None:
    """Run the snippets and print them with their output."""
    names: dict[str, Any] = {}
    for each in SNIPPETS:
        missing = missing_package(each.framework) if each.framework else None
        console.print(f"\n[bold]{each.title}[/]")
        if missing is not None:
            console.print(f"(not run: {missing} is not installed)")
            continue
        for line in session(each.source, names):
            console.print(line, markup=False, soft_wrap=True)


def print_absent(absent: Mapping[str, str], console: "Console") -> None:
    """Print a line for each framework that is not installed."""
    for name, package in absent.items():
        console.print(f"  (not repeated in {TITLES[name]}: {package} is not installed)")
