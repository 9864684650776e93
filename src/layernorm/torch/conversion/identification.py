"""Finds out by trials what a norm computes, and for which calls ours does the same."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import nn

from layernorm.torch.arguments import TYPES
from layernorm.torch.conversion.converted import Gating, PyTorchs, Recognized, Types
from layernorm.torch.conversion.modulated import value_of
from layernorm.torch.conversion.trial import (
    OTHER_RESULTS,
    RAISES,
    Call,
    Trials,
    is_plain,
    isolated,
    other_tensors,
)

_EPS_NAMES = ("variance_epsilon", "eps", "epsilon", "norm_eps")
_EPS_VALUES = (1e-5, 1e-6, 1e-8, 1e-12)  # of classes that keep eps in their code

# More than one size, so that the axes of a trial cannot be taken for each other.
_OUTER: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (2, 3, 2), (2, 2, 3, 2))


@cache
def types_of_pytorchs(cls: Any, forward: Any, has_weight: bool, has_bias: bool) -> PyTorchs:
    """Return the types for which our class has the results of PyTorch's own `cls`.

    `forward` is that of cls, which somebody may replace.
    """
    centered = cls is nn.LayerNorm
    names = ("weight" if has_weight else None, "bias" if has_bias else None)
    ours = Recognized(centered, False, (8,), None, *names, "eps", keeps_layout=False)
    with isolated():
        options = {"bias": has_bias} if centered else {}
        module = cls(8, elementwise_affine=has_weight, eps=1e-5, device="cpu", **options)
        return PyTorchs(_types(Trials(module), ours, (5, 8)))


def identify(module: nn.Module) -> Recognized | str:
    """Return what the module's forward computes, or the reason why ours cannot stand in for it."""
    shapes = {tuple(each.shape) for each in module.parameters(recurse=False)}
    if len(shapes) > 1:
        return f"whose parameters have different shapes, {', '.join(map(str, shapes))}"
    if shapes & {(), (1,)}:
        return "whose weight has one element, for all of x"
    reasons: list[str] = []
    more = list(inspect.signature(type(module).forward).parameters)[2:]
    with isolated():
        trials = Trials(module, takes_gate=bool(more))
        gatings = _gatings(module, *shapes) if more else [None]
        for eps in _possible_eps(module):
            best: Recognized | None = None
            for candidate in _candidates(module, eps, gatings, *shapes):
                found = _with_ranks(trials, candidate, module, reasons)
                if found.ranks and (best is None or len(found.ranks) > len(best.ranks)):
                    best = found
            if best is not None:
                return _verify(trials, best, module)
    telling = [each for each in reasons if each != OTHER_RESULTS and RAISES not in each]
    if telling:
        return f"which {telling[0]}"
    if reasons and OTHER_RESULTS not in reasons:
        condition = "".join(f" with {each} of x's shape" for each in more)
        return f"which {reasons[0]} when it is tried on the CPU{condition}"
    if more:
        gate = more[0]
        return (
            f"which is neither norm(x) * act({gate}) nor norm(x * act({gate})) of silu or sigmoid"
        )
    buffers = [name for name, _ in other_tensors(module)]
    if buffers:
        return f"whose results depend on {', '.join(buffers)}, which is not a parameter"
    if any(len(each) > 1 for each in shapes):
        return f"whose weight of shape {shapes.pop()} is not that of the normalized axes"
    return "which is neither layer norm nor RMS norm over the last axis or axis 1"


def _possible_eps(module: nn.Module) -> list[str | float]:
    """List the attributes that may be eps, then the values that may stand in the code."""
    names = [*_EPS_NAMES, *(name for name in vars(module) if "eps" in name.lower())]
    attributes = [each for each in names if isinstance(getattr(module, each, ""), float | None)]
    return [*dict.fromkeys(attributes), *_EPS_VALUES]


def _candidates(
    module: nn.Module,
    eps: str | float,
    gatings: Sequence[Gating | None],
    shape: tuple[int, ...] | None = None,
) -> Iterator[Recognized]:
    names = [name for name, _ in module.named_parameters(recurse=False)]
    roles: list[Any] = [[(None, None)], [(*names, None)], [tuple(names), tuple(names[::-1])]]
    sizes = getattr(module, "normalized_shape", None) if shape is None else shape
    sizes = tuple(sizes) if isinstance(sizes, tuple | list) else None
    may_be_centered = _value_of(module, eps) is not None
    for centered, axis, (weight, bias), is_zero_centered, keeps_layout, gating in product(
        (True, False), (None, 1), roles[len(names)], (False, True), (True, False), gatings
    ):
        if (
            (may_be_centered or not centered)
            and (centered or bias is None)
            and (axis is None or len(sizes or (0,)) == 1)
            and (weight or not is_zero_centered)
            and (axis or keeps_layout)
            and not (axis and gating)
        ):
            yield Recognized(
                centered, is_zero_centered, sizes, axis, weight, bias, eps, gating, keeps_layout
            )


def _gatings(module: nn.Module, shape: tuple[int, ...] = ()) -> list[Gating]:
    """List the ways to apply a gate; an attribute may be the number of groups, or their size."""
    groups = {1}
    if len(shape) == 1:
        numbers = {each for each in vars(module).values() if type(each) is int}
        divisors = {each for each in numbers if each > 0 and shape[0] % each == 0}
        groups |= divisors | {shape[0] // each for each in divisors}
    ways = product(("silu", "sigmoid"), (True, False), sorted(groups))
    return [Gating(*each) for each in ways]


def _with_ranks(
    trials: Trials, candidate: Recognized, module: nn.Module, reasons: list[str]
) -> Recognized:
    """Return the candidate with the ranks of x for which it is right; note what differs.

    The rows are so small that eps matters.
    """
    eps = _value_of(module, candidate.eps)
    # Is it the attribute that is read, or does a number in the code have the same value?
    changes = ((candidate.eps, 16 * eps),) if isinstance(candidate.eps, str) and eps else ()
    ranks = set()
    for rank in range(1, len(_OUTER) + 1):
        shape = _shape(candidate, rank)
        if shape is None:
            continue
        call = Call(shape, scale=_scale_of(eps))
        reason = trials.difference(candidate.norm, call) or (
            trials.difference(candidate.norm, replace(call, changes=changes)) if changes else None
        )
        if reason is None:
            ranks.add(rank)
        else:
            reasons.append(reason)
    return replace(candidate, ranks=frozenset(ranks))


def _value_of(module: nn.Module, eps: str | float) -> Any:
    return getattr(module, eps) if isinstance(eps, str) else eps


def _shape(candidate: Recognized, rank: int, is_one_row: bool = False) -> tuple[int, ...] | None:
    """Return a shape of x; None if it cannot have that rank."""
    sizes = candidate.sizes or (8,)
    if rank < len(sizes) or (candidate.axis == 1 and rank < 3):
        return None
    outer = _OUTER[rank - len(sizes)]
    if is_one_row:
        outer = (1,) * len(outer)
    return (*outer, *sizes) if candidate.axis is None else (outer[0], *sizes, *outer[1:])


def _scale_of(eps: float | None) -> float:
    """Return a third of the standard deviation of rows for which eps matters."""
    eps = 2.0**-23 if eps is None else eps
    return eps**0.5 / 3 if eps else 1.0


def _verify(trials: Trials, found: Recognized, module: nn.Module) -> Recognized | str:
    """Return `found` with its layouts, types and reads, after trials of all that may matter."""
    small = _scale_of(_value_of(module, found.eps))
    scales = [(1.0, 1.0), (0.0, 1.0), (small / 8, 1.0), (small * 8, 1.0), (1e6, 1.0), (1.0, 1e6)]
    calls = [
        Call(shape, scale, parameter_scale, training=training, again=scale == parameter_scale)
        for training, rank, (scale, parameter_scale) in product(
            (False, True), sorted(found.ranks), scales
        )
        if (shape := _shape(found, rank))
    ]
    if found.gating:
        calls += [
            replace(each, gate_scale=gate_scale)
            for each, gate_scale in product(calls, (0.0, 30.0, 1e6))
            if each.scale == each.parameter_scale
        ]
    calls += [
        Call(shape, training=training, has_nan=has_nan)
        for training, has_nan in product((False, True), (False, True))
        if (shape := _shape(found, max(found.ranks), is_one_row=not has_nan))
    ]
    if found.sizes is None:
        calls += [replace(calls[0], shape=tuple(7 if s == 8 else s for s in calls[0].shape))]
    for call in calls:
        reason = trials.difference(found.norm, call)
        if reason:
            mode = "training" if call.training else "eval"
            return f"which {reason} in {mode} mode{_numbers_of(call)}"
    rank = max((each for each in found.ranks if each < 5), default=5)
    shape = _shape(found, rank) or ()
    for keeps_layout in (found.keeps_layout,) if found.axis == 1 else (False, True):
        found = replace(found, keeps_layout=keeps_layout)
        layouts = [Call(shape, layout=each) for each in ("permuted", "sliced")]
        if not any(
            found.has_layout_of(each.x()) and trials.difference(found.norm, each)
            for each in layouts
        ):
            types = _types(trials, found, shape)  # the last trials: then all has been read
            return replace(found, types=types, reads=_reads(trials, found, module))
    return "which gives results in another memory format than ours"


def _reads(trials: Trials, found: Recognized, module: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Return what the forward has read, but for what `found` names and for tensors."""
    names = [each for each in trials.read() if each not in (found.eps, found.weight, found.bias)]
    values = [(name, value_of(module, name)) for name in names]
    return tuple((name, copy.copy(value)) for name, value in values if is_plain(value))


def _numbers_of(call: Call) -> str:
    if call.has_nan:
        return ", for rows of NaN"
    scales = {"x": call.scale, "parameters": call.parameter_scale, "gates": call.gate_scale}
    return "".join(
        f", for {name} of about {scale:.0e}" for name, scale in scales.items() if scale != 1
    )


def _types(trials: Trials, found: Recognized, shape: tuple[int, ...]) -> frozenset[Types]:
    """Return the types that give the original's results, in both modes."""
    served: set[Types] = set()
    has_parameters = bool(found.weight or found.bias)
    for x_type, autocast, of_parameters in product(
        TYPES, (False, True), TYPES if has_parameters else (None,)
    ):
        call = Call(shape, 1.0, 1.0, x_type, of_parameters or x_type, autocast)
        narrower = (torch.float16, torch.bfloat16) if x_type is torch.float32 else ()
        for of_gate in (x_type, *narrower) if found.gating else (None,):
            call = replace(call, gate_type=of_gate or x_type)
            modes = (replace(call, training=each) for each in (False, True))
            if not any(trials.difference(found.norm, each) for each in modes):
                served.add((x_type, of_parameters, autocast, of_gate))
    return frozenset(served)
