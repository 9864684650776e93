"""Rows too wide for one program: a program for each chunk of each row, in steps.

What a chunk adds to its row's sums is stored, and each program of the next step adds up what all
chunks of its row have stored: in one order, whatever the number of rows. A chunk's numbers are
scaled by a power of two of its own, so that no sum leaves its range.
"""

import triton
import triton.language as tl

from layernorm.triton.backward import half_powers
from layernorm.triton.forward import scale_and_shift, store_statistics
from layernorm.triton.rows import (
    cols_of_tile,
    exponent_of,
    finite_power,
    is_ordinary_rstd,
    largest_of_rows,
    load_parameter,
    normalized,
    over,
    pointers_to,
    power_of_two,
    row_sums,
    scaled_rstd,
    scaling_exponents,
)


@triton.jit
def chunk_of(program, CHUNKS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr):
    """Return the row of a program, as a tile has it, and the columns of its chunk."""
    row = tl.zeros([1], tl.int64) + program // CHUNKS
    return row, cols_of_tile(HIGH, LOW) + (program % CHUNKS).to(tl.int32) * (HIGH * LOW)


@triton.jit
def of_all_chunks(base, row, other, CHUNKS: tl.constexpr, MOST: tl.constexpr):
    """Load what the chunks of a row have stored: (1, MOST)."""
    chunk = tl.arange(0, MOST)[None, :]
    return tl.load(base + row[:, None] * CHUNKS + chunk, mask=chunk < CHUNKS, other=other)


@triton.jit
def first_mean(
    largest_ptr,
    sum_ptr,
    row,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Return exponent, scale and mean of the row times 2^-exponent."""
    largest = of_all_chunks(largest_ptr, row, 0.0, CHUNKS, MOST)
    exponent, scale = scaling_exponents(tl.max(largest, 1), EPS)
    mean = tl.zeros([1], dtype)
    if CENTERED:
        parts = of_all_chunks(sum_ptr, row, 0.0, CHUNKS, MOST)
        shift = tl.maximum(exponent_of(largest) - exponent[:, None], -1000)
        mean = over(tl.sum(parts * power_of_two(shift, tl.float64), 1), COLS).to(dtype)
    return exponent, scale, mean


@triton.jit
def merged_statistics(
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    row,
    dtype: tl.constexpr,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Return exponent, scale, mean, residual and rstd of the row times 2^-exponent."""
    exponent, scale, mean = first_mean(
        largest_ptr, sum_ptr, row, dtype, COLS, EPS, CENTERED, CHUNKS, MOST
    )
    variance = over(tl.sum(of_all_chunks(squares_ptr, row, 0.0, CHUNKS, MOST), 1), COLS)
    residual = tl.zeros([1], dtype)
    if CENTERED:
        rest = over(tl.sum(of_all_chunks(rest_ptr, row, 0.0, CHUNKS, MOST), 1), COLS)
        square = rest * rest
        # what is left of a constant row, whose first mean was not exact
        around_mean = variance - square
        variance = tl.where(around_mean <= square * 2.0**-40, variance * 0.0, around_mean)
        first = mean.to(tl.float64)
        exact = first + rest
        mean = exact.to(dtype)
        if dtype == tl.float64:
            part = exact - first
            residual = (first - (exact - part)) + (rest - part)
        else:
            residual = (exact - mean.to(tl.float64)).to(dtype)
    return scaled_rstd(variance, exponent, scale, mean, residual, EPS)


_CHUNKS = (
    *("rows", "x_outer_stride", "dy_outer_stride", "x_ptr", "dy_ptr", "dx_ptr", "y_ptr"),
    *("weight_ptr", "bias_ptr", "mean_ptr", "rstd_ptr", "residual_ptr", "normalizer_ptr"),
    *("largest_ptr", "sum_ptr", "rest_ptr", "squares_ptr"),
    *("exponent_ptr", "sum_g_ptr", "sum_g_xhat_ptr"),
)


def _unspecialized(*names: str) -> dict[str, list[str]]:
    given = [name for name in _CHUNKS if name in names]
    return {"do_not_specialize": given, "do_not_specialize_on_alignment": given}


@triton.jit(**_unspecialized("x_ptr", "rstd_ptr", "largest_ptr", "sum_ptr", "x_outer_stride"))
def wide_sums(
    x_ptr,
    rstd_ptr,
    largest_ptr,
    sum_ptr,
    x_outer_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    ONLY_EXTRAORDINARY: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store the largest magnitude of a chunk of x, and its sum.

    ONLY_EXTRAORDINARY: where the saved rstd is one that the backward cannot use.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    row, cols = chunk_of(program, CHUNKS, HIGH, LOW)
    wanted = 1
    if ONLY_EXTRAORDINARY:
        wanted = tl.max((is_ordinary_rstd(tl.load(rstd_ptr + row)) == 0).to(tl.int32), 0)
    if wanted != 0:
        zero = tl.zeros([1], tl.int64)
        x_at = pointers_to(x_ptr, row, zero, x_outer_stride, 1, cols, False, VECTOR)
        x = tl.load(x_at, mask=(cols < COLS)[None, :, :], other=0.0).to(dtype)
        largest = largest_of_rows(x)
        at = zero + program
        tl.store(largest_ptr + at, largest)
        if CENTERED:
            scale = power_of_two(-exponent_of(largest), dtype)
            total = row_sums(x * scale[:, None, None], False, VECTOR)
            tl.store(sum_ptr + at, total)


@triton.jit(
    **_unspecialized(
        *("x_ptr", "mean_ptr", "rstd_ptr", "x_outer_stride"),
        *("largest_ptr", "sum_ptr", "rest_ptr", "squares_ptr"),
    )
)
def wide_squares(
    x_ptr,
    mean_ptr,
    rstd_ptr,
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    x_outer_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    GIVEN_MEAN: tl.constexpr,
    ONLY_EXTRAORDINARY: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store a chunk's sums of x - mean and of its square, the mean being the first one.

    GIVEN_MEAN: a saved one, whose residual is wanted.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    row, cols = chunk_of(program, CHUNKS, HIGH, LOW)
    wanted = 1
    if ONLY_EXTRAORDINARY:
        wanted = tl.max((is_ordinary_rstd(tl.load(rstd_ptr + row)) == 0).to(tl.int32), 0)
    if wanted != 0:
        scale = tl.full([1], 1.0, dtype)
        if GIVEN_MEAN:
            mean = tl.load(mean_ptr + row)
        else:
            _, scale, mean = first_mean(
                largest_ptr, sum_ptr, row, dtype, COLS, EPS, CENTERED, CHUNKS, MOST
            )
        inside = (cols < COLS)[None, :, :]
        zero = tl.zeros([1], tl.int64)
        x_at = pointers_to(x_ptr, row, zero, x_outer_stride, 1, cols, False, VECTOR)
        x = tl.load(x_at, mask=inside, other=0.0).to(dtype)
        d = tl.where(inside, x * scale[:, None, None] - mean[:, None, None], 0.0)
        at = zero + program
        if CENTERED:
            tl.store(rest_ptr + at, row_sums(d, True, VECTOR))
        tl.store(squares_ptr + at, row_sums(d * d, True, VECTOR))


@triton.jit(
    **_unspecialized(
        *("x_ptr", "weight_ptr", "bias_ptr", "y_ptr", "mean_ptr", "rstd_ptr", "residual_ptr"),
        *("largest_ptr", "sum_ptr", "rest_ptr", "squares_ptr", "x_outer_stride"),
    )
)
def wide_forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    x_outer_stride: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    SAVE: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Write y of a chunk; the first chunk of a row writes the statistics. y is contiguous."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    row, cols = chunk_of(program, CHUNKS, HIGH, LOW)
    exponent, scale, mean, residual, rstd = merged_statistics(
        *(largest_ptr, sum_ptr, rest_ptr, squares_ptr, row, dtype),
        *(COLS, EPS, CENTERED, CHUNKS, MOST),
    )
    inside = (cols < COLS)[None, :, :]
    zero = tl.zeros([1], tl.int64)
    x_at = pointers_to(x_ptr, row, zero, x_outer_stride, 1, cols, False, VECTOR)
    x = tl.load(x_at, mask=inside, other=0.0).to(dtype)
    weight = 1.0
    bias = 0.0
    if HAS_WEIGHT:
        weight = load_parameter(weight_ptr, cols, COLS, VECTOR, ZERO_CENTERED, dtype)
    if HAS_BIAS:
        bias = load_parameter(bias_ptr, cols, COLS, VECTOR, False, dtype)
    y = normalized(x, scale, mean, residual, rstd, CENTERED)
    y = scale_and_shift(y, weight, bias, HAS_WEIGHT, HAS_BIAS)
    y_at = pointers_to(y_ptr, row, zero, COLS, 1, cols, False, VECTOR)
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=inside)
    if SAVE:
        store_statistics(
            *(mean_ptr, rstd_ptr, residual_ptr, row, (zero + program) % CHUNKS == 0, exponent),
            *(mean, residual, rstd, CENTERED),
        )


@triton.jit(
    **_unspecialized(
        *("mean_ptr", "rstd_ptr", "residual_ptr", "normalizer_ptr", "rows"),
        *("largest_ptr", "sum_ptr", "rest_ptr", "squares_ptr"),
    )
)
def wide_normalizer(
    mean_ptr,
    rstd_ptr,
    residual_ptr,
    normalizer_ptr,
    largest_ptr,
    sum_ptr,
    rest_ptr,
    squares_ptr,
    rows: tl.int64,
    COLS: tl.constexpr,
    EPS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
):
    """Store what turns a row of x into xhat: scale, mean, residual and rstd, (4, rows)."""
    dtype: tl.constexpr = rstd_ptr.dtype.element_ty
    row = tl.zeros([1], tl.int64) + tl.program_id(0).to(tl.int64)
    scale = tl.full([1], 1.0, dtype)
    mean = tl.zeros([1], dtype)
    residual = tl.zeros([1], dtype)
    rstd = tl.load(rstd_ptr + row)
    if CENTERED:
        mean = tl.load(mean_ptr + row)
        if HAS_RESIDUAL:
            residual = tl.load(residual_ptr + row)
        else:
            rest = tl.sum(of_all_chunks(rest_ptr, row, 0.0, CHUNKS, MOST), 1)
            residual = over(rest, COLS).to(dtype)
    if EPS is not None:
        if tl.max((is_ordinary_rstd(rstd) == 0).to(tl.int32), 0) != 0:
            _, scale, mean, residual, rstd = merged_statistics(
                *(largest_ptr, sum_ptr, rest_ptr, squares_ptr, row, dtype),
                *(COLS, EPS, CENTERED, CHUNKS, MOST),
            )
    tl.store(normalizer_ptr + row, scale)
    tl.store(normalizer_ptr + rows + row, mean)
    tl.store(normalizer_ptr + 2 * rows + row, residual)
    tl.store(normalizer_ptr + 3 * rows + row, rstd)


@triton.jit
def chunk_of_g(dy, weight):
    """Return the chunk of g = dy * weight times 2^-exponent, and the exponent."""
    largest = largest_of_rows(dy)
    dy_exponent = exponent_of(largest)
    weight_exponent = exponent_of(largest_of_rows(weight))
    dy_scale = finite_power(dy_exponent, largest)
    weight_scale = power_of_two(-weight_exponent, dy.dtype)
    g = (dy * dy_scale[:, None, None]) * (weight * weight_scale[:, None, None])
    return g, dy_exponent + weight_exponent


@triton.jit(
    **_unspecialized(
        *("x_ptr", "dy_ptr", "weight_ptr", "normalizer_ptr", "rows"),
        *("exponent_ptr", "sum_g_ptr", "sum_g_xhat_ptr", "x_outer_stride", "dy_outer_stride"),
    )
)
def wide_gradient_sums(
    x_ptr,
    dy_ptr,
    weight_ptr,
    normalizer_ptr,
    exponent_ptr,
    sum_g_ptr,
    sum_g_xhat_ptr,
    rows: tl.int64,
    x_outer_stride: tl.int64,
    dy_outer_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Store a chunk's sums of g and g * xhat, g times 2^-exponent, and the exponent."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    row, cols = chunk_of(program, CHUNKS, HIGH, LOW)
    inside = (cols < COLS)[None, :, :]
    zero = tl.zeros([1], tl.int64)
    x_at = pointers_to(x_ptr, row, zero, x_outer_stride, 1, cols, False, VECTOR)
    dy_at = pointers_to(dy_ptr, row, zero, dy_outer_stride, 1, cols, False, VECTOR)
    x = tl.load(x_at, mask=inside, other=0.0).to(dtype)
    dy = tl.load(dy_at, mask=inside, other=0.0).to(dtype)
    weight = tl.full([1, HIGH, LOW], 1.0, dtype)
    if HAS_WEIGHT:
        weight = load_parameter(weight_ptr, cols, COLS, VECTOR, ZERO_CENTERED, dtype)
    scale = tl.load(normalizer_ptr + row)
    mean = tl.load(normalizer_ptr + rows + row)
    residual = tl.load(normalizer_ptr + 2 * rows + row)
    rstd = tl.load(normalizer_ptr + 3 * rows + row)
    xhat = normalized(x, scale, mean, residual, rstd, CENTERED)
    xhat = tl.where(inside, xhat, 0.0)  # the padding lanes may have overflowed
    g, exponent = chunk_of_g(dy, weight)
    at = zero + program
    tl.store(exponent_ptr + at, exponent)
    tl.store(sum_g_xhat_ptr + at, row_sums(g * xhat, True, VECTOR))
    if CENTERED:
        tl.store(sum_g_ptr + at, row_sums(g, True, VECTOR))


@triton.jit(
    **_unspecialized(
        *("x_ptr", "dy_ptr", "weight_ptr", "dx_ptr", "normalizer_ptr", "rows"),
        *("exponent_ptr", "sum_g_ptr", "sum_g_xhat_ptr", "x_outer_stride", "dy_outer_stride"),
    )
)
def wide_dx(
    x_ptr,
    dy_ptr,
    weight_ptr,
    dx_ptr,
    normalizer_ptr,
    exponent_ptr,
    sum_g_ptr,
    sum_g_xhat_ptr,
    rows: tl.int64,
    x_outer_stride: tl.int64,
    dy_outer_stride: tl.int64,
    COLS: tl.constexpr,
    CENTERED: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ZERO_CENTERED: tl.constexpr,
    VECTOR: tl.constexpr,
    CHUNKS: tl.constexpr,
    MOST: tl.constexpr,
    HIGH: tl.constexpr,
    LOW: tl.constexpr,
):
    """Write dx of a chunk; contiguous."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0).to(tl.int64)
    row, cols = chunk_of(program, CHUNKS, HIGH, LOW)
    inside = (cols < COLS)[None, :, :]
    zero = tl.zeros([1], tl.int64)
    x_at = pointers_to(x_ptr, row, zero, x_outer_stride, 1, cols, False, VECTOR)
    dy_at = pointers_to(dy_ptr, row, zero, dy_outer_stride, 1, cols, False, VECTOR)
    x = tl.load(x_at, mask=inside, other=0.0).to(dtype)
    dy = tl.load(dy_at, mask=inside, other=0.0).to(dtype)
    weight = tl.full([1, HIGH, LOW], 1.0, dtype)
    if HAS_WEIGHT:
        weight = load_parameter(weight_ptr, cols, COLS, VECTOR, ZERO_CENTERED, dtype)
    scale = tl.load(normalizer_ptr + row)
    mean = tl.load(normalizer_ptr + rows + row)
    residual = tl.load(normalizer_ptr + 2 * rows + row)
    rstd = tl.load(normalizer_ptr + 3 * rows + row)
    xhat = normalized(x, scale, mean, residual, rstd, CENTERED)

    exponents = of_all_chunks(exponent_ptr, row, -100000, CHUNKS, MOST)
    exponent = tl.max(exponents, 1)
    shift = power_of_two(tl.maximum(exponents - exponent[:, None], -1000), tl.float64)
    parts = of_all_chunks(sum_g_xhat_ptr, row, 0.0, CHUNKS, MOST)
    mean_g_xhat = over(tl.sum(parts * shift, 1), COLS).to(dtype)
    dx, own_exponent = chunk_of_g(dy, weight)
    dx = dx * power_of_two(tl.maximum(own_exponent - exponent, -126), dtype)[:, None, None]
    if CENTERED:
        parts = of_all_chunks(sum_g_ptr, row, 0.0, CHUNKS, MOST)
        dx -= over(tl.sum(parts * shift, 1), COLS).to(dtype)[:, None, None]
    dx = tl.fma(-xhat, mean_g_xhat[:, None, None], dx) * rstd[:, None, None]
    # the scale of x is a power of two
    first, second = half_powers(exponent + exponent_of(scale), dtype)
    dx = dx * first[:, None, None] * second[:, None, None]
    dx_at = pointers_to(dx_ptr, row, zero, COLS, 1, cols, False, VECTOR)
    tl.store(dx_at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
