"""Prints what `compare` found."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from minilm import embeddings, fine_tuning, model


def print_comparison(found: dict[str, Any]) -> None:
    """Print the embeddings, the fine-tuning and the errors of its gradients."""
    print(
        f"{found['paragraphs']} paragraphs from the docstrings of Python's standard library, "
        f"in batches of {embeddings.BATCH} of at most {model.TOKENS} tokens"
    )
    for dtype, ways in found["embeddings"].items():
        _print_table(
            [dtype, "model, s", "its layer norms, ms", "cosine to PyTorch's float32"],
            [
                [way, f"{each['seconds']:.2f}", f"{1e3 * each['norm_seconds']:.2f}",
                 f"{each['similarity']:.7f}"]
                for way, each in ways.items()
            ],
        )  # fmt: skip
    print(
        f"{found['steps']} steps of fine-tuning in bfloat16, first lines of docstrings against "
        f"what follows them, in batches of {fine_tuning.BATCH} pairs"
    )
    ways = found["training"]
    _print_table(
        ["layer norms", "loss, first 5", "loss, last 5", "s"],
        [
            [way, f"{fmean(each['loss'][:5]):.3f}", f"{fmean(each['loss'][-5:]):.3f}",
             f"{each['seconds']:.1f}"]
            for way, each in ways.items()
        ],
    )  # fmt: skip
    pairs = next(iter(ways.values()))["gradient_pairs"]
    print(
        f"The gradients of weight and bias from a batch of {pairs} pairs after that: relative "
        "errors, in the worst of the 13 layer norms"
    )
    _print_table(
        ["layer norms", "alone: weight", "bias", "whole model: weight", "bias"],
        [
            [way, *(f"{each[against][name]:.1e}" for against in ("norm", "model")
                    for name in ("weight", "bias"))]
            for way, each in ways.items()
        ],
    )  # fmt: skip
    print(
        "(Against float64. Alone: given the same x and dy. Whole model: from the same weights,\n"
        "so that the rounding of all other layers counts too.)"
    )


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for first, *others in lines:
        cells = (each.rjust(width) for each, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *cells]))
    print()
