"""The problems that `gpu.py` measures: sizes, types, tensors, and the work on them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

LARGE = 2**26  # elements of x in the cells that memory limits

# (x, weight, bias) -> y; with residual= y and total; with gate= y times silu(gate)
Norm = Callable[..., Any]


class Cell(NamedTuple):
    work: str  # check, forward, backward, both
    dtype: str
    rows: int
    cols: int
    with_compiler: bool = False  # torch.compile and quack take seconds a cell
    residual: bool = False
    gate: bool = False

    @classmethod
    def stored(cls, found: dict[str, Any]) -> "Cell":
        """Return the cell of an entry of a report, which holds the results too."""
        return cls(**{name: found[name] for name in cls._fields})

    @property
    def plain(self) -> "Cell":
        """A forward and a backward for which the same kernels of ours are compiled."""
        return self._replace(work="both", rows=2, with_compiler=False)

    @property
    def is_fused(self) -> bool:
        return self.residual or self.gate

    @property
    def is_large(self) -> bool:
        return self.rows == LARGE // self.cols

    @property
    def name(self) -> str:
        beside = " residual" if self.residual else " gate" if self.gate else ""
        return f"{self.work}{beside} {self.dtype} {self.rows}x{self.cols}"

    @property
    def useful_bytes(self) -> int:
        plain, residual, gate = {
            "forward": (2, 4, 3),
            "backward": (3, 4, 5),
            "both": (5, 8, 8),
        }[self.work]
        passes = residual if self.residual else gate if self.gate else plain
        return passes * self.rows * self.cols * DTYPES[self.dtype].itemsize


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor
    residual: Tensor | None = None
    dtotal: Tensor | None = None
    gate: Tensor | None = None

    @property
    def beside(self) -> dict[str, Tensor]:
        given = {"residual": self.residual, "gate": self.gate}
        return {name: each for name, each in given.items() if each is not None}

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (*self[:3], *self.beside.values())

    def forward(self, norm: Norm) -> Any:
        return norm(*self[:3], **self.beside)


def make(cell: Cell, device: str, seed: int) -> Problem:
    """Draw the ordinary problem on the device."""
    from layernorm.cli.problem import ordinary_arrays  # not before gpu.py has found the package

    generator = torch.Generator(device=device).manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    arrays = ordinary_arrays(normal, (cell.rows, cell.cols), mean=0.5)
    *leaves, dy = (each.to(DTYPES[cell.dtype]) for each in arrays)
    given = (*(each.requires_grad_() for each in leaves), dy)
    if cell.gate:
        gate = normal((cell.rows, cell.cols)).to(dy.dtype)
        return Problem(*given, gate=gate.requires_grad_())
    if not cell.residual:
        return Problem(*given)
    residual, dtotal = (normal((cell.rows, cell.cols)).to(dy.dtype) for _ in range(2))
    return Problem(*given, residual.requires_grad_(), dtotal)


def call(cell: Cell, norm: Norm, given: Problem, y: Any = None) -> Any:
    """Do the work; a backward takes the results of an earlier forward."""
    if cell.work == "forward":
        with torch.no_grad():
            return given.forward(norm)
    y = given.forward(norm) if y is None else y
    gradients = given.dy if given.dtotal is None else (given.dy, given.dtotal)
    return torch.autograd.grad(y, given.inputs, gradients, retain_graph=cell.work == "backward")
