"""The largest error against float64, and checks of what an interpreter cannot show."""

from collections.abc import Callable
from typing import Any

import torch
from gpu_problems import DTYPES, Cell, Norm, Problem, call, make
from torch import Tensor


def words(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"[:2000]


def error(cell: Cell, got: Any, given: Problem) -> float:
    """Return the largest distance from float64, in units in the last place of the largest value."""
    results = (got,) if isinstance(got, Tensor) else got
    distances, sizes = [0.0] * len(results), [0.0] * len(results)

    def compare(at: int, mine: Tensor, right: Tensor) -> None:
        distance = (mine.detach().double() - right).abs().max()
        distances[at] = max(distances[at], float(distance.nan_to_num(nan=float("inf"))))
        sizes[at] = max(sizes[at], float(right.abs().max()))

    weight, bias = (each.detach().double() for each in (given.weight, given.bias))
    dweight, dbias = torch.zeros_like(weight), torch.zeros_like(bias)
    step = max(1, 2**24 // cell.cols)
    for first in range(0, cell.rows, step):  # float64 of all rows might not fit
        rows = slice(first, first + step)
        x, dy = given.x[rows].detach(), given.dy[rows].double()
        if given.residual is not None:
            x = x + given.residual[rows].detach()
        x = x.double()
        x = x - x.mean(-1, keepdim=True)
        rstd = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        xhat = x * rstd
        n = xhat * weight + bias
        act = torch.ones((), device=x.device)
        if given.gate is not None:
            gate = given.gate[rows].detach().double()
            sigmoid = gate.sigmoid()
            act = gate * sigmoid
        if cell.work == "forward":
            compare(0, results[0][rows], n * act)
            continue
        if given.gate is not None:
            compare(3, results[3][rows], dy * n * sigmoid * (1 + gate * (1 - sigmoid)))
        dy = dy * act
        g = dy * weight
        means = g.mean(-1, keepdim=True), (g * xhat).mean(-1, keepdim=True)
        dx = rstd * (g - means[0] - xhat * means[1])
        if given.dtotal is not None:
            dx = dx + given.dtotal[rows].double()
        compare(0, results[0][rows], dx)
        dweight += (dy * xhat).sum(0)
        dbias += dy.sum(0)
    if cell.work != "forward":
        compare(1, results[1], dweight)
        compare(2, results[2], dbias)
    epsilon = torch.finfo(DTYPES[cell.dtype]).eps
    return max(d / (epsilon * max(s, 1e-30)) for d, s in zip(distances, sizes, strict=True))


def checks(cell: Cell, norm: Norm, device: str) -> dict[str, Any]:
    """Check what an interpreter cannot show; a result is a bool, an error in ulp, or a message."""
    import layernorm.torch as ours

    given = make(cell, device, seed=1)
    x, weight, bias, dy = given[:4]

    def gradients(rows: slice) -> tuple[Tensor, ...]:
        part = x[rows].detach().requires_grad_()
        return torch.autograd.grad(norm(part, weight, bias), (part, weight, bias), dy[rows])

    def is_alone(rows: slice) -> bool:
        y = torch.equal(norm(x[rows], weight, bias), norm(x, weight, bias)[rows])
        return y and torch.equal(gradients(rows)[0], gradients(slice(None))[0][rows])

    def wherever_it_lies() -> bool:
        memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(x.shape)
        memory.copy_(x.detach())
        return torch.equal(norm(memory, weight, bias), norm(x, weight, bias))

    def repeats() -> bool:
        pairs = zip(gradients(slice(None)), gradients(slice(None)), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    def far_from_zero(work: str) -> float:
        moved = given._replace(x=(x.detach() + 1000).requires_grad_())
        return error(cell._replace(work=work), call(cell._replace(work=work), norm, moved), moved)

    def channels_first() -> float:
        turned = x.detach().t().contiguous().view(1, cell.cols, cell.rows)
        y = ours.layer_norm(turned, (cell.cols,), weight, bias, axis=1)
        return error(cell._replace(work="forward"), y[0].t(), given)

    def no_rows() -> bool:
        return all(not each.any() for each in gradients(slice(0, 0)))

    questions: dict[str, Callable[[], bool | float]] = {
        "a row alone has its bits": lambda: is_alone(slice(2, 3)),
        "a row has its bits wherever it lies": wherever_it_lies,
        "a repetition has the same bits": repeats,
        "error of y, mean 1000": lambda: far_from_zero("forward"),
        "error of the gradients, mean 1000": lambda: far_from_zero("backward"),
        "error of y, channels first": channels_first,
        "no rows": no_rows,
    }
    found: dict[str, Any] = {}
    for question, answer in questions.items():
        try:
            found[question] = answer()
        except Exception as problem:
            found[question] = words(problem)
    return found
