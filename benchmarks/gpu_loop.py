"""Long rows with one program a row, which loops over its columns: an alternative to our blocks.

It has a quarter of the code of `layernorm.triton.long_row_*`. For rows in the ordinary range only.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from layernorm.torch.arguments import Definition
from layernorm.torch.gpu.backward import Backward

BLOCK = 8192
OPTIONS: dict[str, Any] = {"num_warps": 16, "enable_fp_fusion": False}


@triton.jit
def load(base, first, cols, mask):
    return tl.load(base + first + cols, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * COLS
    y_ptr += row * COLS
    cols = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, COLS, BLOCK):
        total += load(x_ptr, first, cols, first + cols < COLS).to(tl.float64)
    exact_mean = tl.sum(total, 0) / COLS
    mean = exact_mean.to(tl.float32)
    rest = (exact_mean - mean).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, COLS, BLOCK):
        mask = first + cols < COLS
        d = tl.where(mask, (load(x_ptr, first, cols, mask) - mean) - rest, 0.0)
        total += (d * d).to(tl.float64)
    rstd = (1.0 / tl.sqrt(tl.sum(total, 0) / COLS + EPS)).to(tl.float32)
    for first in range(0, COLS, BLOCK):
        mask = first + cols < COLS
        xhat = ((load(x_ptr, first, cols, mask) - mean) - rest) * rstd
        weight, bias = load(weight_ptr, first, cols, mask), load(bias_ptr, first, cols, mask)
        y = tl.fma(xhat, weight, bias)
        tl.store(y_ptr + first + cols, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def backward(
    dy_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    dy_ptr += row * COLS
    x_ptr += row * COLS
    dx_ptr += row * COLS
    cols = tl.arange(0, BLOCK)
    mean, rstd = tl.load(mean_ptr + row), tl.load(rstd_ptr + row)
    sum_g = tl.zeros([BLOCK], tl.float64)
    sum_g_xhat = tl.zeros([BLOCK], tl.float64)
    for first in range(0, COLS, BLOCK):
        mask = first + cols < COLS
        g = load(dy_ptr, first, cols, mask) * load(weight_ptr, first, cols, mask)
        sum_g += g.to(tl.float64)
        sum_g_xhat += (g * ((load(x_ptr, first, cols, mask) - mean) * rstd)).to(tl.float64)
    mean_g = (tl.sum(sum_g, 0) / COLS).to(tl.float32)
    mean_g_xhat = (tl.sum(sum_g_xhat, 0) / COLS).to(tl.float32)
    for first in range(0, COLS, BLOCK):
        mask = first + cols < COLS
        g = load(dy_ptr, first, cols, mask) * load(weight_ptr, first, cols, mask)
        xhat = (load(x_ptr, first, cols, mask) - mean) * rstd
        dx = tl.fma(-xhat, mean_g_xhat, g - mean_g) * rstd
        tl.store(dx_ptr + first + cols, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class Loop(torch.autograd.Function):
    """Layer norm over the last axis of a contiguous (rows, cols) x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows, cols = x.shape
        y = torch.empty_like(x)
        mean, rstd = (x.new_empty((rows, 1), dtype=torch.float32) for _ in range(2))
        given = (x, weight, bias, y, mean, rstd)
        forward[rows,](*given, COLS=cols, EPS=1e-5, BLOCK=BLOCK, **OPTIONS)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        rows, cols = x.shape
        dx = torch.empty_like(x)
        backward[rows,](dy, x, weight, mean, rstd, dx, COLS=cols, BLOCK=BLOCK, **OPTIONS)
        definition, need = Definition((-1,), 1e-5), (False, True, True)
        sums = Backward(dy, x, weight, weight.dtype, definition, need, (mean, rstd, None))
        return dx, *sums.run()[1:]
