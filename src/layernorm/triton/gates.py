"""A gate: its activation, silu(z) = z * sigmoid(z) or sigmoid(z) = 1 / (1 + exp(-z)), and products.

GATE_X is the activation by which x is multiplied before it is normalized, and GATE_Y the one by
which the norm of x is multiplied: "silu", "sigmoid", or None without such a gate.
"""

import math

import triton
import triton.language as tl

from layernorm.triton.tiles import load_tile

_LOG2_OF_E: tl.constexpr = tl.constexpr(math.log2(math.e))
# log(2), in two parts: its product with an exponent is exact for the first.
_LN2_HIGH: tl.constexpr = tl.constexpr(float.fromhex("0x1.63p-1"))
_LN2_LOW: tl.constexpr = tl.constexpr(float.fromhex("-0x1.bd0106p-13"))
_LN2_HIGH_64: tl.constexpr = tl.constexpr(float.fromhex("0x1.62e42feep-1"))
_LN2_LOW_64: tl.constexpr = tl.constexpr(float.fromhex("0x1.a39ef35793c76p-33"))
# Of the Taylor series of exp. Up to r = log(2) / 2, the first omitted term is below a quarter ulp.
_COEFFICIENTS: tl.constexpr = tl.constexpr(tuple(1 / math.factorial(k) for k in range(14)))


@triton.jit
def full_like(t, VALUE: tl.constexpr):
    """Return a tile of VALUE of t's shape and type.

    Triton 3.6 rounds a number that is given to tl.fma to float32, also beside float64.
    """
    return tl.full(t.shape, VALUE, t.dtype)


@triton.jit
def scaled_exp_of_minus(t, UP: tl.constexpr):
    """Return exp(-t) * 2^UP, for t from 0 to where the result is still a normal number."""
    # Added to a number, `to_integer` leaves no bits after the point, and the lowest bits are those
    # of an integer n. Then exp(-t) = 2^n * exp(r).
    if t.dtype == tl.float64:
        to_integer = full_like(t, 1.5 * 2.0**52)
        shifted = tl.fma(t, full_like(t, -_LOG2_OF_E), to_integer)
        n = shifted - to_integer
        r = tl.fma(n, full_like(t, -_LN2_LOW_64), tl.fma(n, full_like(t, -_LN2_HIGH_64), -t))
        power = (shifted.to(tl.int64, bitcast=True) << 52) + ((1023 + UP) << 52)
    else:
        to_integer = full_like(t, 1.5 * 2.0**23)
        shifted = tl.fma(t, full_like(t, -_LOG2_OF_E), to_integer)
        n = shifted - to_integer
        r = tl.fma(n, full_like(t, -_LN2_LOW), tl.fma(n, full_like(t, -_LN2_HIGH), -t))
        power = (shifted.to(tl.int32, bitcast=True) << 23) + ((127 + UP) << 23)
    last: tl.constexpr = 13 if t.dtype == tl.float64 else 7
    series = full_like(t, _COEFFICIENTS[last])
    for k in tl.static_range(1, last + 1):
        series = tl.fma(series, r, full_like(t, _COEFFICIENTS[last - k]))
    return series * power.to(t.dtype, bitcast=True)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """Return act(z) and its derivative. At -infinity, silu and its derivative are their limits, 0.

    Small ones are computed times a power of two, so that only the last product is subnormal.
    """
    up: tl.constexpr = 128 if z.dtype == tl.float64 else 64
    most: tl.constexpr = 760.0 if z.dtype == tl.float64 else 110.0  # most * exp(-most) is 0
    down: tl.constexpr = 2.0**-up
    negative = z < 0.0
    size = tl.abs(z)
    size = tl.where(size > most, most, size)
    e = scaled_exp_of_minus(size, up)
    denominator = tl.fma(e, down, 1.0)
    inverse = 1.0 / denominator  # in float32 a GPU's quotient may be 2 ulp off
    inverse = tl.fma(tl.fma(-denominator, inverse, 1.0), inverse, inverse)
    scale = tl.where(negative, down, 1.0)
    sigmoid = tl.where(negative, e, 1.0) * inverse  # divided by scale
    if ACTIVATION == "silu":
        of_minus_z = tl.where(negative, 1.0, e * down) * inverse
        slope = tl.fma(tl.where(negative, -size, size), of_minus_z, 1.0)
        return tl.where(negative, -size, z) * sigmoid * scale, sigmoid * slope * scale
    else:
        return sigmoid * scale, e * inverse * inverse * down


@triton.jit
def times_activation(
    v,
    gate_ptr,
    index,
    gate_strides,
    ACTIVATION: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
):
    """Return v * act(gate); v if ACTIVATION is None."""
    if ACTIVATION is not None:
        gate = load_tile(gate_ptr, index, gate_strides, STRIDED, VECTOR, dtype)
        act, _ = activate(gate, ACTIVATION)
        v *= act
    return v


@triton.jit
def product_gradients(
    d,
    v,
    gate_ptr,
    index,
    gate_strides,
    ACTIVATION: tl.constexpr,
    STRIDED: tl.constexpr,
    VECTOR: tl.constexpr,
    dtype: tl.constexpr,
    AGAIN: tl.constexpr,
):
    """Return the gradients of v and of the gate, given d, that of v * act(gate).

    AGAIN: the gate has been loaded before.
    """
    gate = load_tile(gate_ptr, index, gate_strides, STRIDED, VECTOR, dtype, AGAIN)
    act, slope = activate(gate, ACTIVATION)
    return d * act, d * v * slope
