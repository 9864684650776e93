"""Norms of DTensors that are sharded along normalized axes: each process has a part of every row.

A process computes the moments of its parts: mean and standard deviation, or root mean square. These
are gathered, not x: 16 bytes for each row and part, in RMS norm 8 (float64 and gated: 24 and 8). So
is what the backward sums along the rows: 24 bytes, in RMS norm 16. With n_i elements in part i,

    mean = sum(n_i mean_i) / n        var = sum(n_i (var_i + (mean_i - mean)^2)) / n

All processes get the same bits, in every run and for any number of rows: parts are added up in
pairs, in the order of the ranks. (The order of an all-reduce follows the size of the message.)
Numbers of rows are float64, whose range no square of a narrower type leaves; those of float64 rows
are scaled by a power of two.
"""

import functools
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from layernorm.torch import arguments, derivatives, parts_of_rows
from layernorm.torch.arguments import Axes, Definition
from layernorm.torch.parts_of_rows import times_power


def norm(
    x: DTensor,
    addend: DTensor | None,
    gate: DTensor | None,
    weight: DTensor | None,
    bias: DTensor | None,
    definition: Definition,
) -> tuple[DTensor, ...]:
    """Return y, or with an addend y and total = x + addend, placed as x and the addend are.

    Raises: RuntimeError if one of them is no DTensor on x's mesh.
    """
    mesh = x.device_mesh
    _check_meshes(x, residual=addend, gate=gate, weight=weight, bias=bias)
    placements = _common_placements(x, addend)
    rows = [
        None if each is None else each.redistribute(placements=placements).to_local()
        for each in (x, addend, gate)
    ]
    parameters = [_local_parameter(each, x, placements, definition) for each in (weight, bias)]
    if mesh.get_coordinate() is None:  # this process is not in the mesh, and has no elements
        results = [each for each in rows[:2] if each is not None]
    else:
        levels = _levels(x, placements, definition.axes)
        results = SplitNorm.apply(*rows, *parameters, levels, definition)
    stride = torch.empty(x.shape, device="meta").stride()
    return tuple(
        DTensor.from_local(
            *(each.contiguous(), mesh, placements), run_check=False, shape=x.shape, stride=stride
        )
        for each in results
    )


# ---- who has what


def _check_meshes(x: DTensor, **others: Tensor | None) -> None:
    for name, given in others.items():
        if given is not None and getattr(given, "device_mesh", None) != x.device_mesh:
            kind = f"on {given.device_mesh}" if isinstance(given, DTensor) else "no DTensor"
            raise RuntimeError(
                f"{name} is {kind}, but the input is a DTensor on {x.device_mesh} and both must "
                f"agree: pass torch.distributed.tensor.distribute_tensor({name}, mesh, placements)"
            )


def _common_placements(x: DTensor, addend: DTensor | None) -> list[Any]:
    """Return x's placements, or the addend's where x is not sharded; what is Partial is reduced."""
    others = x.placements if addend is None else addend.placements
    return [
        next((each for each in pair if type(each) is Shard), Replicate())
        for pair in zip(x.placements, others, strict=True)
    ]


def _local_parameter(
    parameter: DTensor | None, x: DTensor, placements: Sequence[Any], definition: Definition
) -> Tensor | None:
    """Return what a process needs of weight or bias: as large as its part of x along their axes."""
    if parameter is None:
        return None
    own = tuple(range(-x.dim(), 0))
    if not arguments.has_kept_axes(parameter, definition.axes):
        own = definition.axes
    needed: list[Any] = []
    of_gradient: list[Any] = []
    for placement in placements:
        axis = placement.dim - x.dim() if type(placement) is Shard else None
        if axis in own and parameter.shape[own.index(axis)] > 1:
            needed.append(Shard(own.index(axis)))
            of_gradient.append(needed[-1])
        else:  # shared by all processes along this axis of the mesh: those with other rows add up
            needed.append(Replicate())
            of_gradient.append(Replicate() if axis is None else Partial())
    # First widened, so that what the processes add up is rounded to the parameter's type once.
    wide = parameter.to(arguments.compute_type(parameter.dtype))
    return wide.redistribute(placements=needed).to_local(grad_placements=of_gradient)


class Level(NamedTuple):
    """The processes along one axis of the mesh, among which rows are split.

    `group` is their name. `counts` has the elements of a row that each has, with all inner levels.
    """

    group: str
    counts: list[int]


def _levels(x: DTensor, placements: Sequence[Any], axes: Axes) -> list[Level]:
    """Return the levels, the innermost, whose parts are the smallest, first."""
    mesh, sizes = x.device_mesh, {axis: x.shape[axis] for axis in axes}
    levels: list[Level] = []
    for dim, placement in enumerate(placements):
        axis = placement.dim - x.dim() if type(placement) is Shard else None
        if axis in sizes:
            of_ranks = _chunks(sizes[axis], mesh.size(dim))
            others = prod([size for each, size in sizes.items() if each != axis])
            counts = [others * size for size in of_ranks]
            levels.insert(0, Level(mesh.get_group(dim).group_name, counts))
            sizes[axis] = of_ranks[mesh.get_local_rank(dim)]
    return levels


def _chunks(size: int, processes: int) -> list[int]:
    """Return the sizes of the shards, which are those of torch.chunk."""
    most = -(-size // processes)
    return [max(0, min(most, size - most * rank)) for rank in range(processes)]


# ---- sums, whose order depends on nothing but the sizes of a row and its parts


def _gathered(level: Level, numbers: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return each as all processes have it, stacked along a new first axis: one collective."""
    own = torch.stack(tuple(numbers))
    every = own.new_empty((len(level.counts) * len(own), *own.shape[1:]))
    if own.numel() != 0:
        # Operators with results of their own, as the compiler and selective checkpointing need.
        collectives = torch.ops._c10d_functional
        every = collectives.all_gather_into_tensor(own, len(level.counts), level.group)
        every = collectives.wait_tensor(every)
    return every.unflatten(0, (-1, len(own))).unbind(1)


def _sum_of_parts(v: Tensor) -> Tensor:
    """Add up along the first axis, in pairs."""
    while len(v) > 1:
        half = (len(v) + 1) // 2
        v = torch.cat((v[: len(v) - half] + v[half:], v[len(v) - half : half]))
    return v[0]


def _statistics(u: Tensor, levels: Sequence[Level], definition: Definition) -> Tensor:
    """Return rstd, mean, residual and power, of whole rows times 2**-power, stacked.

    The mean is the unevaluated sum mean + residual. The last two are 0 but of float64.
    """
    moments: Sequence[Tensor] = parts_of_rows.moments(u, definition).unbind()
    is_float64 = u.dtype == torch.float64
    for level in levels:
        moments = _merged(level, _gathered(level, moments), is_float64)
    zero = torch.zeros_like(moments[0])
    power, root_eps = zero, torch.full_like(zero, definition.eps).sqrt()
    if is_float64:
        # Beside a mean that is far larger than rstd's inverse, x may be large, but not infinite.
        power = _power_of((moments[0], root_eps))
        power = torch.maximum(power, _power_of(moments) - 1000)
        *moments, root_eps = (times_power(each, -power) for each in (*moments, root_eps))
    deviation, mean, residual = (*moments, zero, zero)[:3]
    # Operations that PyTorch rounds exactly: of others the bits depend on the place in memory.
    rstd = 1 / (deviation.square() + root_eps.square()).sqrt()
    rstd = torch.where(rstd.isinf(), 0, rstd)  # of a constant row with eps = 0
    return torch.stack([rstd, mean, residual, power])


def _merged(level: Level, parts: Sequence[Tensor], is_float64: bool) -> list[Tensor]:
    """Merge the moments of parts, each of them stacked along a first axis."""
    shares = parts[0].new_tensor(level.counts) / max(1, sum(level.counts))
    shares = shares.reshape(-1, *[1] * (parts[0].dim() - 1))
    power = None
    if is_float64:
        power = _power_of(parts).amax(0)
        parts = [times_power(each, -power) for each in parts]
    deviation, *of_mean = parts
    squares, means = deviation.square(), []
    if of_mean:
        mean, residual = (*of_mean, torch.zeros_like(deviation))[:2]
        # Seen from the first part, which is never empty: exactly, where the row is constant. Then
        # from near the middle, since the first part may be far from all others.
        center = mean[0] + _sum_of_parts(shares * (mean - mean[0] + residual))
        offsets = mean - center + residual
        more = _sum_of_parts(shares * offsets)
        squares = squares + (offsets - more).square()
        whole = center + more
        means = [whole, center - whole + more][: len(of_mean)]
    merged = [_sum_of_parts(shares * squares).sqrt(), *means]
    return merged if power is None else [times_power(each, power) for each in merged]


def _power_of(moments: Sequence[Tensor]) -> Tensor:
    """Return e so that all are near 2**e and below."""
    largest = functools.reduce(torch.maximum, [each.abs() for each in moments])
    power = torch.frexp(largest).exponent + 1
    return torch.where(largest.isfinite() & (largest > 0), power, 0).double()


def _means(
    sums: Tensor, statistics: Tensor, levels: Sequence[Level], definition: Definition
) -> Tensor:
    """Return the means of g * xhat and, but for RMS norm, of g, stacked, given the parts' sums.

    What the roundings of rstd and xhat have in common would count twice where g lies along xhat,
    and dx is small. But mean(xhat^2) is 1 - eps * rstd^2 without them: its excess says what to take
    back.
    """
    totals: Sequence[Tensor] = sums.unbind()
    for level in levels:
        totals = [_sum_of_parts(each) for each in _gathered(level, totals)]
    n = sum(levels[-1].counts)
    of_g_xhat, of_squares, *of_g = (each / n for each in totals)
    rstd, *_, power = statistics
    root_eps = times_power(torch.full_like(rstd, definition.eps).sqrt(), -power)
    excess = of_squares - (1 - (root_eps * rstd).square())
    means = torch.stack([of_g_xhat - of_g_xhat * excess, *of_g])
    # An infinity in dy, of any process, makes the whole row NaN.
    return torch.where(means.isfinite().all(0), means, torch.nan)


# ---- the node


class SplitNorm(torch.autograd.Function):
    """The node of a process, of the parts of rows that it has."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        addend: Tensor | None,
        gate: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        levels: Sequence[Level],
        definition: Definition,
    ) -> tuple[Tensor, ...]:
        """Return y, with an addend y and total = x + addend."""
        total = x if addend is None else x + addend
        u, act, _ = _gated(total, gate, definition)
        statistics = _statistics(u, levels, definition)
        wide_weight, wide_bias = _like(u, weight, bias)
        y = parts_of_rows.norm(u, wide_weight, wide_bias, statistics, definition)
        y = y * act if act is not None and definition.norm_before_gate else y
        ctx.adds, ctx.levels, ctx.definition = addend is not None, levels, definition
        ctx.save_for_backward(total, gate, weight, bias, statistics)
        ctx.set_materialize_grads(False)
        return (y.to(x.dtype), total) if ctx.adds else (y.to(x.dtype),)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None = None) -> tuple[Any, ...]:
        """Return dx, the same for the addend, dgate, dweight and dbias."""
        total, gate, weight, bias, statistics = ctx.saved_tensors
        if dy is None:  # y is not used
            dx, others = dtotal, [None, None, None]
        elif torch.is_grad_enabled():  # to be differentiated again
            mean = functools.partial(_differentiable_mean, levels=ctx.levels)
            dx, dweight, dbias, dgate = (
                None if of is None else gradient.to(of.dtype)
                for gradient, of in zip(
                    derivatives.gradients(dy, total, gate, weight, bias, ctx.definition, mean),
                    (total, weight, bias, gate),
                    strict=True,
                )
            )
            dx, others = dx if dtotal is None else dx + dtotal, [dgate, dweight, dbias]
        else:
            needs_x, needs_addend, *needs = ctx.needs_input_grad[:5]
            dx, *others = _gradients(
                *(dy, dtotal, total, gate, weight, bias, statistics, ctx.levels, ctx.definition),
                (needs_x or needs_addend, *needs),
            )
        return dx, dx if ctx.adds else None, *others, None, None


def _gated(
    x: Tensor, gate: Tensor | None, definition: Definition
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what is normalized, act(gate) and its derivative, with a gate in float64."""
    if gate is None:
        return x, None, None
    act, slope = derivatives.Gate.of(gate.double(), definition)
    return x.double() if definition.norm_before_gate else x * act, act, slope


def _like(u: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    """Return the parameters as the steps take them beside u: of float64 if u is."""
    is_float64 = u.dtype == torch.float64
    return [each.double() if each is not None and is_float64 else each for each in parameters]


def _gradients(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    levels: Sequence[Level],
    definition: Definition,
    need: Sequence[bool],
) -> list[Tensor | None]:
    """Return dx plus dtotal, dgate, dweight and dbias, None for those not needed."""
    need_dx, need_dgate, *need_parameters = need
    norm_first = definition.norm_before_gate
    u, act, slope = _gated(x, gate, definition)
    wide_weight, wide_bias = _like(u, weight, bias)
    dn = dy if act is None else dy * act if norm_first else dy.double()
    dx = dgate = None
    if need_dx or (need_dgate and not norm_first):
        sums = parts_of_rows.sums(dn, u, wide_weight, statistics, definition)
        means = _means(sums, statistics, levels, definition)
        added = dtotal if act is None else None
        dx = parts_of_rows.gradient(dn, added, u, wide_weight, statistics, means, definition)
    if need_dgate and norm_first:
        dgate = dy * parts_of_rows.norm(u, wide_weight, wide_bias, statistics, definition) * slope
    elif need_dgate and dx is not None:
        dgate = dx * x * slope
    if act is not None and dx is not None:
        dx = dx if norm_first else dx * act
        dx = dx if dtotal is None else dx + dtotal
    of_parameters = parts_of_rows.parameter_gradients(
        *(dn, u, wide_weight, wide_bias, statistics, definition, need_parameters)
    )
    types = (x, x, weight, bias)
    return [
        None if each is None or of is None else each.to(of.dtype)
        for each, of in zip((dx if need_dx else None, dgate, *of_parameters), types, strict=True)
    ]


def _differentiable_mean(v: Tensor, axes: Axes, *, levels: Sequence[Level]) -> Tensor:
    return SumOverParts.apply(v.sum(axes, keepdim=True), levels) / sum(levels[-1].counts)


class SumOverParts(torch.autograd.Function):
    """A sum over all processes that have parts of a row; each of them gets it, and its gradient."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, levels: Sequence[Level]) -> Tensor:
        """Return the sum."""
        ctx.levels = levels
        for level in levels:
            v = _sum_of_parts(_gathered(level, [v])[0])
        return v

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Any, ...]:
        """Return the sum of the gradients."""
        return SumOverParts.apply(of_sum, ctx.levels), None
