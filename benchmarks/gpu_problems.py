"""The problems that `gpu.py` measures: sizes, types, tensors, and the work on them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cell(NamedTuple):
    work: str  # check, forward, backward, both
    dtype: str
    rows: int
    cols: int
    with_compiler: bool = False  # torch.compile takes seconds a cell

    @property
    def name(self) -> str:
        return f"{self.work} {self.dtype} {self.rows}x{self.cols}"

    @property
    def useful_bytes(self) -> int:
        passes = {"forward": 2, "backward": 3, "both": 5}[self.work]
        return passes * self.rows * self.cols * DTYPES[self.dtype].itemsize


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor


def make(cell: Cell, device: str, seed: int) -> Problem:
    """Draw the ordinary problem on the device."""
    from layernorm.cli.problem import ordinary_arrays  # not before gpu.py has found the package

    generator = torch.Generator(device=device).manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    arrays = ordinary_arrays(normal, (cell.rows, cell.cols), mean=0.5)
    *leaves, dy = (each.to(DTYPES[cell.dtype]) for each in arrays)
    return Problem(*(each.requires_grad_() for each in leaves), dy)


def call(cell: Cell, norm: Norm, given: Problem, y: Tensor | None = None) -> Any:
    """Do the work; a backward takes the y of an earlier forward."""
    inputs = given[:3]
    if cell.work == "forward":
        with torch.no_grad():
            return norm(*inputs)
    y = norm(*inputs) if y is None else y
    return torch.autograd.grad(y, inputs, given.dy, retain_graph=cell.work == "backward")
