"""DTensor's rules for our operators: they may be sharded along axes that are not normalized.

Calls of an x that is sharded along normalized axes do not reach them (see split_rows.py), but for
8 bits: there DTensor itself gathers such an x.
"""

import sys
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from layernorm.torch.arguments import Axes

Placements = list[Any]


def knows(kind: type) -> bool:
    """Tell whether tensors of this class, DTensor or one on its way to it, take our operators."""
    tensor = sys.modules.get("torch.distributed.tensor")
    collectives = sys.modules.get("torch.distributed._functional_collectives")
    return (tensor is not None and issubclass(kind, tensor.DTensor)) or (
        collectives is not None and issubclass(kind, collectives.AsyncCollectiveTensor)
    )


def is_counting(mode: object) -> bool:
    """Tell whether a mode is CommDebugMode, which counts collectives and takes any operator."""
    debug = sys.modules.get("torch.distributed.tensor.debug")
    return debug is not None and isinstance(mode, debug.CommDebugMode)


def prepare() -> None:
    """Register the rules, if there may be DTensors, which transforms hide, and they are not yet."""
    if "torch.distributed.tensor" in sys.modules:
        _prepare()


def _prepare() -> None:
    _register()


# The compiler calls it and does not trace it: torch.compiler.assume_constant_result, which would
# import the whole compiler.
_prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]


def splits_rows(x: Tensor, axes: Axes) -> bool:
    """Tell whether x is a DTensor that is sharded along a normalized axis, as `Shard` does."""
    tensor = sys.modules.get("torch.distributed.tensor")
    if type(x) is Tensor or tensor is None or not isinstance(x, tensor.DTensor):
        return False
    sharded = [each for each in x.placements if not each.is_replicate() and not each.is_partial()]
    return all(type(each) is tensor.Shard for each in sharded) and any(
        each.dim - x.dim() in axes for each in sharded
    )


@cache
def _register() -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor.experimental import register_sharding

    ops = torch.ops.layernorm
    propagator = DTensor._op_dispatcher.sharding_propagator
    add_forward = partial(_forward_shardings, beside="residual")
    add_backward = partial(_backward_shardings, beside="residual")
    gated_forward = partial(_forward_shardings, beside="gate")
    gated_backward = partial(_backward_shardings, beside="gate")
    for op, shardings, tensors in (
        (ops.layer_norm.default, _forward_shardings, 3),
        (ops.rms_norm.default, _forward_shardings, 2),
        (ops.layer_norm_backward.default, _backward_shardings, 7),
        (ops.rms_norm_backward.default, _backward_shardings, 4),
        (ops.add_layer_norm.default, add_forward, 4),
        (ops.add_rms_norm.default, add_forward, 3),
        (ops.add_layer_norm_backward.default, add_backward, 8),
        (ops.add_rms_norm_backward.default, add_backward, 5),
        (ops.gated_layer_norm.default, gated_forward, 4),
        (ops.gated_rms_norm.default, gated_forward, 3),
        (ops.gated_layer_norm_backward.default, gated_backward, 8),
        (ops.gated_rms_norm_backward.default, gated_backward, 5),
        (ops.quantized_layer_norm.default, _quantized_shardings, 4),
        (ops.quantized_rms_norm.default, _quantized_shardings, 3),
    ):
        register_sharding(op)(shardings)
        # The sharding depends on the axes, so they belong to the key of DTensor's cache.
        propagator.op_to_schema_info[op] = RuntimeSchemaInfo(tensors, needs_pytree=True)


def _kept_axes(x: Any, axis: Sequence[int]) -> list[int]:
    normalized = {each % x.ndim for each in axis}
    return [each for each in range(x.ndim) if each not in normalized]


def _split(arguments: Sequence[Any]) -> tuple[list[Any], Sequence[int], list[Any]]:
    """Split the arguments into the tensors (or None), the axes, and the others."""
    at = next(at for at, given in enumerate(arguments) if isinstance(given, list | tuple))
    return list(arguments[:at]), arguments[at], list(arguments[at + 1 :])


def _forward_shardings(*arguments: Any, beside: str = "") -> list[tuple[Placements, Placements]]:
    """Return the placements of the results and arguments; beside x may be a residual or a gate."""
    from torch.distributed.tensor import Replicate, Shard

    tensors, axis, options = _split(arguments)
    of_rows_given = 2 if beside else 1
    x, parameters = tensors[0], tensors[of_rows_given:]
    results = (3 if len(parameters) == 2 else 1) + (2 if beside == "residual" else 1)
    rest = [None] * (1 + len(options))

    def placed(of_rows: Any, kept: int | None = None) -> tuple[Placements, Placements]:
        of_parameters = _of_parameters(parameters, x, kept)
        return [of_rows] * results, [*[of_rows] * of_rows_given, *of_parameters, *rest]

    return [placed(Replicate()), *(placed(Shard(kept), kept) for kept in _kept_axes(x, axis))]


def _quantized_shardings(*arguments: Any) -> list[tuple[Placements, Placements]]:
    from torch.distributed.tensor import Replicate, Shard

    (x, *parameters, scale), axis, options = _split(arguments)
    of_scale = None if scale is None else Replicate()
    rest = [of_scale, *[None] * (1 + len(options))]

    def placed(of_rows: Any, kept: int | None = None) -> tuple[Placements, Placements]:
        of_scales = of_rows if scale is None else Replicate()
        return [of_rows, of_scales], [of_rows, *_of_parameters(parameters, x, kept), *rest]

    return [placed(Replicate()), *(placed(Shard(kept), kept) for kept in _kept_axes(x, axis))]


def _varies(parameter: Any, x: Any, kept: int) -> bool:
    """Tell whether a parameter varies along this kept axis of x; then it has all of x's axes."""
    return parameter.ndim == x.ndim and parameter.shape[kept] == x.shape[kept] != 1


def _of_parameters(parameters: Sequence[Any], x: Any, kept: int | None = None) -> Placements:
    """Return how weight and bias are placed where x is sharded along this kept axis, or nowhere."""
    from torch.distributed.tensor import Replicate, Shard

    def placement(given: Any) -> Any:
        if given is None:
            return None
        return Shard(kept) if kept is not None and _varies(given, x, kept) else Replicate()

    return [placement(each) for each in parameters]


def _backward_shardings(*arguments: Any, beside: str = "") -> list[tuple[Placements, Placements]]:
    from torch.distributed.tensor import Partial, Replicate, Shard

    tensors, axis, options = _split(arguments)
    need = options[-1]
    of_gate = [need[-1]] if beside == "gate" else []
    of_parameters = need[1 : len(need) - len(of_gate)]
    rows = 2 + bool(beside) + (3 if len(of_parameters) == 2 else 1)  # dy, x and the statistics
    x, parameters = tensors[0], tensors[rows:]
    rest = [None] * (1 + len(options))
    shardings: list[tuple[Placements, Placements]] = [
        (
            [Replicate()] * len(need),
            [*[Replicate()] * rows, *_of_parameters(parameters, x), *rest],
        )
    ]
    for kept in _kept_axes(x, axis):
        varies = any(each is not None and _varies(each, x, kept) for each in parameters)
        of_parameter = Shard(kept) if varies else Partial()
        shards = [Shard(kept), *[of_parameter] * len(of_parameters), *[Shard(kept)] * len(of_gate)]
        gradients = [
            shard if wanted else Replicate() for shard, wanted in zip(shards, need, strict=True)
        ]
        of_rows = [Shard(kept)] * rows
        shardings.append((gradients, [*of_rows, *_of_parameters(parameters, x, kept), *rest]))
    return shardings
