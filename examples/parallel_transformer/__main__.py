"""Train a transformer on several processes and on one, and compare the losses.

    make demo-distributed [ARGS="--processes 4 --steps 120"]

or, in the folder examples, with PyTorch installed: python -m parallel_transformer
"""

import argparse
import importlib.util
from typing import Any

from layernorm.cli.arguments import positive


def main() -> None:
    parser = argparse.ArgumentParser("parallel_transformer", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=positive, default=4, help="1, 2 or 4 (default 4)")
    parser.add_argument("--steps", type=positive, default=120, help="of training (default 120)")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.error("parallel_transformer needs PyTorch, not installed here: pip install torch")
    import torch

    from parallel_transformer import model, training

    torch.set_num_threads(1)  # as each of the processes
    if model.HEADS % options.processes:
        parser.error(f"{model.HEADS} heads cannot be divided among {options.processes} processes")
    print_runs(
        training.train_alone(options.steps),
        training.train_in_processes(options.processes, options.steps),
        options.processes,
    )


def print_runs(alone: Any, together: Any, processes: int) -> None:
    """Print the losses of some steps, and at last those of text that was not trained on."""
    steps = len(alone.losses)
    print(f"{steps} steps on the text of Python's help topics; loss in nats for each character\n")
    print(f"{'step':>12}{'1 process':>14}{f'{processes} processes':>14}{'difference':>14}")
    shown = sorted({0, *range(24, steps, 25), steps - 1})
    rows = [(str(step + 1), alone.losses[step], together.losses[step]) for step in shown]
    for name, first, second in (*rows, ("other text", alone.test_loss, together.test_loss)):
        print(f"{name:>12}{first:14.6f}{second:14.6f}{second - first:14.1e}")
    print(f"{'seconds':>12}{alone.seconds:14.1f}{together.seconds:14.1f}")


if __name__ == "__main__":
    main()
