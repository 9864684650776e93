"""The problems that `gpu.py` measures: sizes, types, tensors, and the work on them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# (x, weight, bias) -> y; (x, weight, bias, residual) -> y, total
Norm = Callable[..., Any]


class Cell(NamedTuple):
    work: str  # check, forward, backward, both
    dtype: str
    rows: int
    cols: int
    with_compiler: bool = False  # torch.compile takes seconds a cell
    residual: bool = False

    @property
    def name(self) -> str:
        of_sum = " residual" if self.residual else ""
        return f"{self.work}{of_sum} {self.dtype} {self.rows}x{self.cols}"

    @property
    def useful_bytes(self) -> int:
        passes = {"forward": (2, 4), "backward": (3, 4), "both": (5, 8)}[self.work]
        return passes[self.residual] * self.rows * self.cols * DTYPES[self.dtype].itemsize


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor
    residual: Tensor | None = None
    dtotal: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self[:3] if self.residual is None else (*self[:3], self.residual)


def make(cell: Cell, device: str, seed: int) -> Problem:
    """Draw the ordinary problem on the device."""
    from layernorm.cli.problem import ordinary_arrays  # not before gpu.py has found the package

    generator = torch.Generator(device=device).manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    arrays = ordinary_arrays(normal, (cell.rows, cell.cols), mean=0.5)
    *leaves, dy = (each.to(DTYPES[cell.dtype]) for each in arrays)
    given = (*(each.requires_grad_() for each in leaves), dy)
    if not cell.residual:
        return Problem(*given)
    residual, dtotal = (normal((cell.rows, cell.cols)).to(dy.dtype) for _ in range(2))
    return Problem(*given, residual.requires_grad_(), dtotal)


def call(cell: Cell, norm: Norm, given: Problem, y: Any = None) -> Any:
    """Do the work; a backward takes the results of an earlier forward."""
    inputs = given.inputs
    if cell.work == "forward":
        with torch.no_grad():
            return norm(*inputs)
    y = norm(*inputs) if y is None else y
    gradients = given.dy if given.dtotal is None else (given.dy, given.dtotal)
    return torch.autograd.grad(y, inputs, gradients, retain_graph=cell.work == "backward")
