"""Embeds paragraphs with PyTorch's layer norms and with ours, and times both."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minilm.model import Pair, Tokens, batches, embedding, norms, ways

BATCH = 16


def embed_each_way(model: Any, pairs: Sequence[Pair]) -> dict[str, dict[str, dict[str, float]]]:
    """Embed in float32 and bfloat16; return times and similarity for each type and way.

    The similarity is the smallest cosine to the embedding with PyTorch's layer norms in float32.
    """
    rests = batches([rest for _, rest in pairs], BATCH)
    with torch.no_grad():
        expected = torch.cat([embedding(model, each) for each in rests]).double()
        return {
            str(dtype).removeprefix("torch."): {
                way: _embed(each, context, rests, expected)
                for way, (each, context) in ways(copy.deepcopy(model).to(dtype)).items()
            }
            for dtype in (torch.float32, torch.bfloat16)
        }


def _embed(model: Any, context: Any, texts: list[Tokens], expected: Any) -> dict[str, float]:
    with context():
        embedding(model, texts[0])  # warms up
        start = time.perf_counter()
        embedded = torch.cat([embedding(model, each) for each in texts])
        seconds = time.perf_counter() - start
        norm_seconds = _time_of_norms(model, texts[0])
    similarity = torch.nn.functional.cosine_similarity(embedded.double(), expected)
    return {
        "seconds": seconds,
        "norm_seconds": norm_seconds * len(texts),
        "similarity": float(similarity.min()),
    }


def _time_of_norms(model: Any, batch: Tokens, repeats: int = 15) -> float:
    calls: list[tuple[Any, Any]] = []
    hooks = [
        each.register_forward_pre_hook(lambda module, given: calls.append((module, given[0])))
        for each in norms(model)
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for module, x in calls:
            module(x)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
