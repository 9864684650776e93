"""`layernorm demo`: train on real handwritten digits, show the first snippets, check, bench."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layernorm.cli import minilm, training
from layernorm.cli.networks import FRAMEWORKS, check_names, missing_package
from layernorm.cli.teller import Teller
from layernorm.numpy import LayerNorm, layer_norm

if TYPE_CHECKING:
    from rich.console import Console

EPOCHS = 20
GOAL = 0.95
# Of the real model. `layernorm minilm` takes more of both, and minutes.
PARAGRAPHS = 32
STEPS = 10


def run(
    *,
    console: "Console | None",
    plot_file: Path,
    epochs: int | None = None,
    train_only: bool = False,
    frameworks: Sequence[str] | None = None,
) -> int:
    """Run the demo; with no console, print JSON at the end. Returns the exit code.

    1 if the contract is broken, or a network that was trained to the end reads too few digits.
    The training is repeated in the `frameworks`; None stands for all that are installed.

    Raises: ValueError for an unknown framework, ImportError for one that is not installed.
    """
    start = time.perf_counter()
    say = Teller(console)
    missing = {name: missing_package(name) for name in FRAMEWORKS if frameworks is None}
    if frameworks is None:
        frameworks = [name for name in FRAMEWORKS if missing[name] is None]
    check_names(frameworks)
    runs = training.train_each(say, frameworks, epochs or EPOCHS)
    for name, package in missing.items():
        if package is not None:
            say.line(f"  (not repeated in {training.TITLES[name]}: {package} is not installed)")
    training.plot(say, runs, plot_file)
    _show_snippets(say)
    story: dict[str, Any] = {
        "command": "demo",
        "training": [asdict(each) for each in runs],
        "losses_png": str(plot_file),
    }
    if not train_only:
        story["minilm"] = _show_real_model(say)
    reached = epochs is not None or all(each.test_accuracy[-1] > GOAL for each in runs)
    holds = same_bits = not any(each.other_bits for each in runs)
    if not train_only:
        check_report, bench_report = _measure(say, console)
        story |= {"check": check_report.as_dict(), "bench": bench_report.as_dict()}
        holds = check_report.holds and same_bits
    story["seconds"] = time.perf_counter() - start
    if console is None:
        from layernorm.cli.console import print_json

        print_json(story)
    say.line(f"\ndone in {story['seconds']:.0f} s")
    if not same_bits:
        say.line("[red]a layer norm gave other bits than NumPy's[/]")
    if not reached:
        say.line(f"[red]test accuracy is not above {GOAL:.0%}[/]")
    return 0 if holds and reached else 1


def _show_snippets(say: Teller) -> None:
    say.title("first steps")
    rng = np.random.default_rng(0)
    say.code("from layernorm.numpy import LayerNorm, layer_norm")
    say.code("rng = np.random.default_rng(0)")
    say.code("x = rng.normal(5, 3, (4, 8)).astype(np.float32)    # (batch, features)")
    say.code("y = layer_norm(x)")
    x = rng.normal(5, 3, (4, 8)).astype(np.float32)
    y = layer_norm(x)
    say.table(
        ["row", "mean of x", "std of x", "mean of y", "std of y"],
        [
            [str(row), *(f"{value:.6f}" for value in (a.mean(), a.std(), b.mean(), b.std()))]
            for row, (a, b) in enumerate(zip(x.astype(float), y.astype(float), strict=True))
        ],
    )
    say.code("x = rng.integers(0, 10, (2, 3, 4))")
    say.code("layer = LayerNorm([3, 4])    # the last two axes")
    say.code("layer(x)")
    integers = rng.integers(0, 10, (2, 3, 4))
    layer = LayerNorm([3, 4])
    try:
        layer(integers)
    except TypeError as error:
        say.line(f"TypeError: {error}", markup=False)
    say.code("layer(x.astype(np.float32))")
    say.line(np.array2string(layer(integers.astype(np.float32)), precision=4), markup=False)


def _show_real_model(say: Teller) -> dict[str, Any] | None:
    missing = minilm.missing()
    if not missing:
        story = minilm.run(say, paragraphs=PARAGRAPHS, steps=STEPS)
        say.line("  (more paragraphs, and hundreds of steps: layernorm minilm)")
        return story
    say.line(
        f"\n(a real model, MiniLM, would be run here; not installed: {', '.join(missing)}."
        f"\n {minilm.REMEDY})",
        markup=False,
    )
    return None


def _measure(say: Teller, console: "Console | None") -> tuple[Any, Any]:
    from layernorm.cli import bench, check

    say.title("check: is it right on this machine?")
    check_report = check.measure(quick=True, console=console)
    if console is not None:
        check.show(check_report, console)
    say.title("bench: is it fast on this machine?")
    bench_report = bench.measure(plan="quick", console=console)
    if console is not None:
        bench.show(bench_report, console)
    return check_report, bench_report
