"""Fine-tunes in bfloat16 with PyTorch's layer norms and with ours, and measures the gradients."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch

from minilm.model import Pair, Tokens, batches, embedding, norms, ways

BATCH = 8
GRADIENT_PAIRS = 128
"""Pairs whose gradients are measured: each layer norm gets 6,144 rows, twice."""


def fine_tune_each_way(model: Any, pairs: Sequence[Pair], steps: int) -> dict[str, dict[str, Any]]:
    """Train copies of the model from the same weights, and measure the gradients at the end."""
    variants = ways(copy.deepcopy(model).to(torch.bfloat16))
    return {way: _fine_tune(*variants[way], pairs, steps) for way in ("PyTorch", "convert")}


def _fine_tune(model: Any, context: Any, pairs: Sequence[Pair], steps: int) -> dict[str, Any]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    texts = list(zip(*(batches(each, BATCH) for each in zip(*pairs, strict=True)), strict=True))
    losses = []
    start = time.perf_counter()
    with context():
        for step in range(steps):
            optimizer.zero_grad()
            loss = _loss(model, *texts[step % len(texts)])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds = time.perf_counter() - start
        measured = pairs[:GRADIENT_PAIRS]
        firsts, rests = (batches(each, len(measured))[0] for each in zip(*measured, strict=True))
        return {
            "loss": losses,
            "seconds": seconds,
            "gradient_pairs": len(measured),
            **_gradient_errors(model, firsts, rests),
        }


def _loss(model: Any, firsts: Tokens, rests: Tokens) -> Any:
    """Train each first line to be nearest to what follows it, among those of the batch."""
    scores = 20 * embedding(model, firsts) @ embedding(model, rests).T
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def _gradient_errors(model: Any, firsts: Tokens, rests: Tokens) -> dict[str, dict[str, float]]:
    """Return the relative errors of the worst layer norm against float64.

    "norm": of the layer norm alone, given the same x and dy. "model": of the whole model.
    """
    calls: list[tuple[Any, Any, Any]] = []

    def watch(module: Any, given: Any, y: Any) -> None:
        y.retain_grad()
        calls.append((module, given[0].detach(), y))

    hooks = [each.register_forward_hook(watch) for each in norms(model)]
    model.zero_grad()
    _loss(model, firsts, rests).backward()
    for hook in hooks:
        hook.remove()
    alone = [_errors(_gradients(module, x, y.grad), _exact_gradients(module, x, y.grad))
             for module, x, y in calls]  # fmt: skip
    got = [(each.weight.grad, each.bias.grad) for each in norms(model)]
    calls.clear()
    exact_model = copy.deepcopy(model).double()
    exact_model.zero_grad()
    _loss(exact_model, firsts, rests).backward()
    exact = [(each.weight.grad, each.bias.grad) for each in norms(exact_model)]
    whole = [_errors(*each) for each in zip(got, exact, strict=True)]
    return {"norm": _worst(alone), "model": _worst(whole)}


def _gradients(module: Any, x: Any, dy: Any) -> Any:
    return torch.autograd.grad(module(x), [module.weight, module.bias], dy)


def _exact_gradients(module: Any, x: Any, dy: Any) -> Any:
    exact = copy.deepcopy(module).double()
    y = torch.nn.functional.layer_norm(
        x.double(), exact.normalized_shape, exact.weight, exact.bias, exact.eps
    )
    return torch.autograd.grad(y, [exact.weight, exact.bias], dy.double())


def _errors(got: Sequence[Any], exact: Sequence[Any]) -> list[float]:
    return [
        float((mine.double() - right).norm() / right.norm())
        for mine, right in zip(got, exact, strict=True)
    ]


def _worst(errors: list[list[float]]) -> dict[str, float]:
    weight, bias = (max(each) for each in zip(*errors, strict=True))
    return {"weight": weight, "bias": bias}
