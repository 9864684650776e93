"""What a process computes of its parts of rows, where other processes have the rest: four steps.

    moments     of the parts
    norm        y, given the statistics of whole rows
    sums        along the parts, for dx
    gradient    dx, given the means of whole rows

On the CPU the kernels take them; on other devices the same in PyTorch's operations, in float64,
whose range no square of a narrower type leaves. Numbers of rows are float64 and stacked along a new
first axis. A sum's order depends on nothing but the sizes of a row and of its part.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from layernorm.torch import arguments, operators
from layernorm.torch.arguments import Definition


def moments(u: Tensor, definition: Definition) -> Tensor:
    """Return deviation, mean and residual: the mean is the unevaluated sum mean + residual.

    Without the residual unless u is float64; for RMS norm the deviation alone, from 0.
    """
    axes, centered = definition.axes, definition.centered
    count = _moment_count(u, centered)
    if has_kernels(u):
        return torch.ops.layernorm.split_rows_moments(u, list(axes), centered)
    if u.numel() == 0:
        return _empty_numbers(u, count, axes)
    without_eps = Definition(axes, 0.0, centered)
    _, *statistics = operators.forward(u.double(), None, None, without_eps)
    rstd = statistics[1] if centered else statistics[0]
    deviation = torch.where(rstd == 0, rstd, 1 / rstd)  # rstd is 0 where all is constant
    return torch.stack([deviation, *statistics[::2]][:count] if centered else [deviation])


def norm(
    u: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    definition: Definition,
) -> Tensor:
    """Return y of the parts, in u's type; `statistics` as `split_rows` returns them."""
    axes = definition.axes
    if has_kernels(u):
        return torch.ops.layernorm.split_rows_norm(
            *(u, *arguments.repeated(weight, bias), statistics, list(axes)),
            *(definition.centered, definition.zero_centered_weight),
        )
    n = normalized(u, statistics, definition)
    if weight is not None:
        n = n * _wide_weight(weight, u.dim(), definition)
    if bias is not None:
        n = n + arguments.spread(bias.double(), u.dim(), axes)
    return n.to(u.dtype)


def sums(
    dy: Tensor, u: Tensor, weight: Tensor | None, statistics: Tensor, definition: Definition
) -> Tensor:
    """Return those of g * xhat, of xhat^2 and, but for RMS norm, of g = dy * weight."""
    if has_kernels(u):
        return torch.ops.layernorm.split_rows_sums(
            *(dy, u, weight, statistics, list(definition.axes)),
            *(definition.centered, definition.zero_centered_weight),
        )
    g, xhat = _g(dy, weight, definition), normalized(u, statistics, definition)
    terms = (g * xhat, xhat.square(), *([g] if definition.centered else []))
    return torch.stack([_sum(each, definition.axes) for each in terms])


def gradient(
    dy: Tensor,
    dtotal: Tensor | None,
    u: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    means: Tensor,
    definition: Definition,
) -> Tensor:
    """Return rstd * (g - mean(g) - xhat * mean(g * xhat)) + dtotal, in u's type.

    `means` are those of g * xhat and, but for RMS norm, of g.
    """
    if has_kernels(u):
        return torch.ops.layernorm.split_rows_gradient(
            *(dy, dtotal, u, weight, statistics, means, list(definition.axes)),
            *(definition.centered, definition.zero_centered_weight),
        )
    du = _g(dy, weight, definition)
    du = du - means[1] if definition.centered else du
    du = (du - normalized(u, statistics, definition) * means[0]) * statistics[0]
    du = times_power(du, -statistics[3]) if u.dtype == torch.float64 else du
    return (du if dtotal is None else du + dtotal).to(u.dtype)


def parameter_gradients(
    dn: Tensor,
    u: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    definition: Definition,
    need: Sequence[bool],
) -> list[Tensor | None]:
    """Return dweight and dbias of the rows that a process has, None for those not needed."""
    needed = [
        each is not None and wanted for each, wanted in zip((weight, bias), need, strict=True)
    ]
    if not any(needed):
        return [None, None]
    axes, eps, centered = list(definition.axes), definition.eps, definition.centered
    rest = (weight, bias, statistics, axes, eps, centered, needed)
    # The compiler cannot follow a branch that depends on numbers; it sees an operator.
    function = _parameter_gradients
    if torch.compiler.is_compiling():
        function = torch.ops.layernorm.split_rows_parameter_gradients
    found = function(dn, u, *rest)
    return [each if wanted else None for each, wanted in zip(found, needed, strict=True)]


def _parameter_gradients(
    dn: Tensor,
    u: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    axes: list[int],
    eps: float,
    centered: bool,
    need: list[bool],
) -> tuple[Tensor, Tensor]:
    """Return dweight and dbias; those not needed are empty."""
    definition = Definition(tuple(axes), eps, centered)
    saved = _saved(statistics, u.dtype, definition)

    def of_parameter(terms: Tensor, parameter: Tensor) -> Tensor:
        """Sum over the rows that share the parameter."""
        if not arguments.has_kept_axes(parameter, axes):
            shared = [at for at in range(-u.dim(), 0) if at not in axes]
        else:
            sizes = arguments.spread(parameter, u.dim(), definition.axes).shape
            shared = [at - u.dim() for at, size in enumerate(sizes) if size != u.shape[at]]
        return _sum(terms, shared).reshape(parameter.shape).to(parameter.dtype)

    def by_kernels(
        weight: Tensor | None, bias: Tensor | None, need: Sequence[bool]
    ) -> Sequence[Tensor]:
        needed = (False, *need)
        return operators.backward(dn, u, weight, bias, definition, needed, saved or [])[1:]

    dweight = dbias = operators.nothing(u)
    if saved is None:
        if weight is not None and need[0]:
            dweight = of_parameter(dn * normalized(u, statistics, definition), weight)
        if bias is not None and need[1]:
            dbias = of_parameter(dn.double(), bias)
    elif weight is None or bias is None or weight.shape == bias.shape:
        dweight, dbias = (*by_kernels(weight, bias, need), dbias)[:2]
    else:  # each of its own shape
        dweight = by_kernels(weight, None, (need[0], False))[0]
        dbias = by_kernels(None, bias, (False, need[1]))[1]
    return dweight, dbias


def _saved(statistics: Tensor, dtype: torch.dtype, definition: Definition) -> list[Tensor] | None:
    """Return the statistics as a forward saves them; None if these would not be precise.

    From others the kernels compute them anew, of what they take for whole rows.
    """
    compute = arguments.compute_type(dtype)
    most = 2.0**64 if compute == torch.float32 else 2.0**500
    rstd, mean, residual, power = statistics
    if dtype == torch.float64:
        rstd = times_power(rstd, -power)
        mean, residual = (times_power(each, power) for each in (mean, residual))
    least = torch.finfo(compute).tiny
    if not bool(((rstd >= least) & (rstd < most)).all()):
        return None
    rounded = mean.to(compute)
    residual = (mean - rounded + residual).to(compute)
    return [rounded, rstd.to(compute), residual] if definition.centered else [rstd.to(compute)]


def normalized(u: Tensor, statistics: Tensor, definition: Definition) -> Tensor:
    """Return xhat in float64."""
    rstd, mean, residual, power = statistics
    wide = u.double()
    if u.dtype == torch.float64:
        wide = times_power(wide, -power)
    if definition.centered:
        wide = wide - mean
    if definition.centered and u.dtype == torch.float64:
        wide = wide - residual
    return wide * rstd


def times_power(v: Tensor, power: Tensor) -> Tensor:
    """Return v * 2**power, by two factors: a single one could be out of range."""
    whole = power.long()
    half = whole // 2
    return v * _power_of_two(half) * _power_of_two(whole - half)


def _power_of_two(power: Tensor) -> Tensor:
    return (power + 1023 << 52).view(torch.float64)


def has_kernels(u: Tensor) -> bool:
    """Tell whether our kernels take the steps."""
    return u.device.type == "cpu"


def _g(dy: Tensor, weight: Tensor | None, definition: Definition) -> Tensor:
    dy = dy.double()
    return dy if weight is None else dy * _wide_weight(weight, dy.dim(), definition)


def _wide_weight(weight: Tensor, dims: int, definition: Definition) -> Tensor:
    weight = arguments.spread(weight.double(), dims, definition.axes)
    return 1 + weight if definition.zero_centered_weight else weight


def _kept_sizes(v: Tensor, axes: Sequence[int]) -> list[int]:
    return [1 if at - v.dim() in axes else size for at, size in enumerate(v.shape)]


def _sum(v: Tensor, axes: Sequence[int]) -> Tensor:
    """Sum along the axes, which are kept as size 1, by an operator of ours: as a mean."""
    count = prod(v.shape[axis] for axis in axes)
    if v.numel() == 0 or count == 1:
        return v.sum(axes, keepdim=True) if axes else v
    _, mean, *_ = operators.forward(v, None, None, Definition(tuple(axes), 1.0))
    return mean * count


def _moment_count(u: Tensor, centered: bool) -> int:
    return 1 if not centered else 3 if u.dtype == torch.float64 else 2


def _empty_numbers(u: Tensor, count: int, axes: Sequence[int]) -> Tensor:
    return u.new_zeros((count, *_kept_sizes(u, axes)), dtype=torch.float64)


@torch.library.register_fake("layernorm::split_rows_moments")
def _fake_moments(x: Tensor, axis: Sequence[int], centered: bool) -> Tensor:
    return _empty_numbers(x, _moment_count(x, centered), axis)


@torch.library.register_fake("layernorm::split_rows_norm")
def _fake_norm(x: Tensor, *_: object) -> Tensor:
    return operators.empty_as(x)


@torch.library.register_fake("layernorm::split_rows_sums")
def _fake_sums(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    axis: Sequence[int],
    centered: bool,
    zero_centered_weight: bool,
) -> Tensor:
    return _empty_numbers(x, 3 if centered else 2, axis)


@torch.library.register_fake("layernorm::split_rows_gradient")
def _fake_gradient(dy: Tensor, dtotal: Tensor | None, x: Tensor, *_: object) -> Tensor:
    return operators.empty_as(x)


_operator = torch.library.custom_op(
    "layernorm::split_rows_parameter_gradients", _parameter_gradients, mutates_args=()
)


@_operator.register_fake
def _fake_parameter_gradients(
    dn: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    *_, need = rest
    dweight, dbias = (
        torch.empty_like(each) if each is not None and needed else operators.nothing(u)
        for each, needed in zip((weight, bias), need, strict=True)
    )
    return dweight, dbias
