"""The demo's training: in NumPy, and the same again in each framework that is installed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from layernorm.cli import digits
from layernorm.cli.networks import RECIPES, Network, NormCall, Recipe, build_network
from layernorm.cli.networks.network import Weights
from layernorm.cli.teller import Teller
from layernorm.numpy import layer_norm

TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
}


@dataclass
class Run:
    """One training of the network, in one framework by one recipe."""

    framework: str
    optimizer: str
    loss: list[float] = field(default_factory=list)  # of each step
    test_accuracy: list[float] = field(default_factory=list)  # after each epoch
    parameters: list[dict[str, Any]] = field(default_factory=list)  # of the layer norms
    norm_outputs: int = 0  # elements that the layer norms returned
    other_bits: int = 0  # those that `layernorm.numpy` gives other bits, of the same x
    seconds: float = 0.0

    def largest_difference(self, other: "Run") -> float:
        """Find how far the loss of any step is from the other run's."""
        return max(abs(mine - its) for mine, its in zip(self.loss, other.loss, strict=True))


def train_each(say: Teller, frameworks: Sequence[str], epochs: int) -> list[Run]:
    """Train in NumPy by each recipe, then in the frameworks.

    Raises: SystemExit where the digits are not installed.
    """
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
    runs = []
    # Threads cost more than they give in matrix products of this size.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        for recipe in RECIPES:
            say.line(f"\n[bold]{recipe.title}[/], lr {recipe.lr}")
            runs.append(train("numpy", recipe, data, epochs, each_epoch=_teller_of_epochs(say)))
            _tell_parameters(say, runs[-1])
    others = [train(name, recipe, data, epochs) for name in frameworks for recipe in RECIPES]
    _tell_others(say, runs, others)
    return runs + others


def train(
    framework: str,
    recipe: Recipe,
    data: digits.Digits,
    epochs: int,
    *,
    each_epoch: Callable[[int, digits.Epoch], None] = lambda number, epoch: None,
) -> Run:
    """Train the framework's network, and compare what its layer norms return with NumPy's."""
    run = Run(framework, recipe.title)
    weights = digits.initial_weights()
    network = build_network(framework, weights, recipe)
    start = time.perf_counter()
    for number, epoch in enumerate(digits.train(network, data, epochs), start=1):
        run.loss += epoch.losses
        run.test_accuracy.append(epoch.test_accuracy)
        run.norm_outputs += sum(call.y.size for call in epoch.norm_calls)
        run.other_bits += sum(_count_other_bits(call) for call in epoch.norm_calls)
        each_epoch(number, epoch)
    run.seconds = time.perf_counter() - start
    run.parameters = _describe_parameters(network, weights)
    return run


def _count_other_bits(call: NormCall) -> int:
    expected = layer_norm(call.x, call.weight, call.bias)
    return int((call.y.view(np.uint32) != expected.view(np.uint32)).sum())


def _teller_of_epochs(say: Teller) -> Callable[[int, digits.Epoch], None]:
    def tell(number: int, epoch: digits.Epoch) -> None:
        if number in (1, 2, 3) or number % 5 == 0:
            say.line(
                f"  epoch {number:2}: loss {np.mean(epoch.losses):.4f}, "
                f"test accuracy {epoch.test_accuracy:.1%}"
            )

    return tell


def _describe_parameters(network: Network, weights: Weights) -> list[dict[str, Any]]:
    described = []
    for place, learned in enumerate(network.norm_parameters()):
        for name, greek, array in zip(("weight", "bias"), ("gamma", "beta"), learned, strict=True):
            began = weights[f"{3 * place + 1}.{name}"]
            described.append(
                {
                    "name": f"layer norm {place + 1}, {greek}",
                    "min": float(array.min()),
                    "mean": float(array.mean()),
                    "max": float(array.max()),
                    "moved": float(np.linalg.norm(array - began)),
                }
            )
    return described


def _tell_parameters(say: Teller, run: Run) -> None:
    say.line(f"  {len(run.loss)} steps in {run.seconds:.1f} s")
    say.line("  what the layer norms learned (gamma began as ones, beta as zeros):")
    say.table(
        ["parameter", "min", "mean", "max", "distance from its start"],
        [
            [each["name"], *(f"{each[key]:+.3f}" for key in ("min", "mean", "max")),
             f"{each['moved']:.3f}"]
            for each in run.parameters
        ],
    )  # fmt: skip


def _tell_others(say: Teller, runs: Sequence[Run], others: Sequence[Run]) -> None:
    if not others:
        return
    in_numpy = {each.optimizer: each for each in runs}
    say.line("\nThe same network, weights and batches in other frameworks, beside NumPy:")
    say.table(
        ["", "accuracy", "loss off by", "outputs", "other bits"],
        [
            [f"{TITLES[each.framework]}, {each.optimizer.split(',')[0]}",
             f"{each.test_accuracy[-1]:.1%}",
             f"{each.largest_difference(in_numpy[each.optimizer]):.1e}",
             f"{each.norm_outputs:,}", str(each.other_bits)]
            for each in others
        ],
    )  # fmt: skip
    say.line(
        "  (Loss: the largest difference, from the rounding of matrix products. Outputs:\n"
        "  numbers that the layer norms returned; other bits: than layernorm.numpy's for\n"
        "  the same x, weight and bias.)",
        markup=False,
    )


def plot(say: Teller, runs: Sequence[Run], file: Path) -> None:
    """Draw losses and accuracies, the other frameworks' over NumPy's."""
    from layernorm.cli.plots import plot_losses

    plot_losses(runs, file, titles=TITLES)
    say.line(f"losses drawn in {file.resolve()}")
