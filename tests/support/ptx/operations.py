"""PTX's operations on arrays of lanes, bit for bit.

`operation("fma.rn.f32")` gives a function of arrays, and the types of its arguments and results.
Arithmetic that gives NaN gives one NaN, `NAN`: a + b and b + a are the same bits.
"""

import ctypes
import functools
import operator
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Lanes = np.ndarray[Any, Any]

DTYPES = {f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)}
DTYPES |= {f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)}
DTYPES |= {f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)}
DTYPES |= {"pred": np.dtype(bool), "bf16": np.dtype("u2")}
DTYPES |= {"bf16x2": np.dtype("u4"), "f16x2": np.dtype("u4")}
WIDER = {f"{kind}{bits}": f"{kind}{2 * bits}" for kind in "us" for bits in (16, 32)}

NAN = {"f16": np.uint16(0x7FFF), "bf16": np.uint16(0x7FFF), "f32": np.uint32(0x7FFFFFFF)}
NAN |= {"f64": np.uint64(0x7FFFFFFFFFFFFFFF)}


class Operation(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[str, ...]
    results: tuple[str, ...]


@functools.cache
def operation(opcode: str) -> Operation:
    """Return what an instruction computes from registers alone."""
    name, *modifiers = opcode.split(".")
    kind = modifiers[-1] if modifiers else ""
    make = _MAKERS.get(name)
    made = None
    if make is not None and kind in DTYPES:
        made = make(name, modifiers[:-1], kind)
    if made is None:
        raise NotImplementedError(opcode)
    return made


def bits_of(values: Lanes) -> Lanes:
    return values.view(f"u{values.itemsize}")


def from_bf16(bits: Lanes) -> Lanes:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Lanes) -> Lanes:
    """Round to nearest, ties to even."""
    bits = values.view(np.uint32)
    bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return np.where(np.isnan(values), NAN["bf16"], (bits >> np.uint32(16)).astype(np.uint16))


def one_nan(function: Callable[..., Lanes], kind: str) -> Callable[..., Lanes]:
    """Return the function with `NAN` for each NaN among its results."""
    nan = NAN[kind].view(DTYPES[kind])

    def with_one_nan(*given: Lanes) -> Lanes:
        result = function(*given)
        other = np.isnan(result)
        return np.where(other, nan, result) if other.any() else result

    return with_one_nan


# Arithmetic


@functools.cache
def _fused() -> Any:
    """Compile loops over the C library's fused multiply-add, which rounds once."""
    source = "#include <math.h>\n" + "".join(
        f"void {name}_lanes(const {kind} *a, const {kind} *b, const {kind} *c, {kind} *to, long n)"
        f"{{ for (long i = 0; i < n; i++) to[i] = {name}(a[i], b[i], c[i]); }}\n"
        for name, kind in (("fma", "double"), ("fmaf", "float"))
    )
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("a C compiler, for fma.rn")
    with tempfile.TemporaryDirectory() as folder:
        text, library = Path(folder, "fma.c"), Path(folder, "fma.so")
        text.write_text(source)
        command = [compiler, "-O2", "-shared", "-fPIC", str(text), "-o", str(library), "-lm"]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def fma(a: Lanes, b: Lanes, c: Lanes) -> Lanes:
    size = max(a.size, b.size, c.size)
    a, b, c = (np.ascontiguousarray(np.broadcast_to(each, size)) for each in (a, b, c))
    to = np.empty_like(a)
    function = _fused().fmaf_lanes if a.dtype == np.float32 else _fused().fma_lanes
    pointers = (ctypes.c_void_p(each.ctypes.data) for each in (a, b, c, to))
    function(*pointers, ctypes.c_long(size))
    return to


def inexact_quotient(a: Lanes, b: Lanes) -> Lanes:
    """Return a / b up to 2 ulp off, as `div.full` may be; which way follows from the bits."""
    quotient = a / b
    mixed = (bits_of(a) * np.uint32(0x9E3779B1)) ^ (bits_of(b) * np.uint32(0x85EBCA6B))
    off = (((mixed >> np.uint32(13)) % np.uint32(5)).astype(np.int32) - 2).astype(np.uint32)
    magnitude = np.abs(quotient)
    usual = (magnitude > 2.0**-120) & (magnitude < 2.0**126)
    return np.where(usual, (bits_of(quotient) + off).view(np.float32), quotient)


def _extreme(larger: bool, kind: str) -> Callable[..., Lanes]:
    pick = np.fmax if larger else np.fmin
    merge = np.bitwise_and if larger else np.bitwise_or  # of +0 and -0

    def extreme(a: Lanes, b: Lanes) -> Lanes:
        equal = merge(bits_of(a), bits_of(b)).view(a.dtype)
        return np.where(a == b, equal, pick(a, b))

    return one_nan(extreme, kind)


def quotient(a: Lanes, b: Lanes) -> Lanes:
    """Divide integers, toward zero; by zero all bits are set."""
    floor, rest = np.divmod(a, b)
    if a.dtype.kind == "i":
        floor = floor + ((rest != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return np.where(b == 0, ~np.zeros(1, a.dtype), floor)


def remainder(a: Lanes, b: Lanes) -> Lanes:
    return a - quotient(a, b) * b


def high_product(a: Lanes, b: Lanes) -> Lanes:
    return (wide_product(a, b) >> np.uint64(32)).astype(np.uint32)


def wide_product(a: Lanes, b: Lanes) -> Lanes:
    wide = f"{a.dtype.kind}{2 * a.itemsize}"
    return a.astype(wide) * b.astype(wide)


def shift_left(a: Lanes, by: Lanes) -> Lanes:
    width = 8 * a.itemsize
    return np.where(by < width, a << np.minimum(by, width - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Lanes, by: Lanes) -> Lanes:
    """Shift, and fill with the sign of signed numbers."""
    width = 8 * a.itemsize
    shifted = a >> np.minimum(by, width - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by < width, shifted, a.dtype.type(0))


def extract_field(a: Lanes, position: Lanes, length: Lanes) -> Lanes:
    """Compute `bfe`: signed fields are extended by their highest bit, at most a's."""
    width = 8 * a.itemsize
    position, length = position & np.uint32(255), length & np.uint32(255)
    above = width - np.minimum(position + length, width)
    field = shift_right(shift_left(a, above), above + position)
    return np.where(length == 0, a.dtype.type(0), field)


def permute_bytes(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    """Compute `prmt`."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros(1, np.uint32)
    for place in range(4):
        chosen = (selector >> np.uint32(4 * place)) & np.uint32(15)
        shift = (chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8)
        byte = ((both >> shift) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte >> np.uint32(7), np.uint32(255), np.uint32(0))
        byte = np.where(chosen & np.uint32(8), sign, byte)
        result = result | (byte << np.uint32(8 * place))
    return result


# Comparison


def _comparison(name: str, kind: str) -> Callable[..., Lanes] | None:
    ordered = {"eq": operator.eq, "lt": operator.lt, "le": operator.le, "gt": operator.gt}
    ordered |= {"ge": operator.ge}
    opposite = {"ltu": operator.ge, "leu": operator.gt, "gtu": operator.le, "geu": operator.lt}
    if name in ordered:
        return ordered[name]
    if "f" not in kind:
        return operator.ne if name == "ne" else None
    if name in opposite:
        return lambda a, b: ~opposite[name](a, b)
    return {
        "ne": lambda a, b: (a < b) | (a > b),
        "neu": operator.ne,
        "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
        "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    }.get(name)


# Conversion


def conversion(to: str, source: str, rounds: bool) -> Callable[[Lanes], Lanes] | None:
    dtype = DTYPES[to]

    def cast(values: Lanes) -> Lanes:
        return values.astype(dtype)

    if "f" not in source:
        known = to in ("f32", "f64") if rounds else "f" not in to
        return cast if known else None
    if "f" not in to:
        return None
    if not rounds and dtype.itemsize > DTYPES[source].itemsize:
        return (lambda values: cast(from_bf16(values))) if source == "bf16" else cast
    if rounds and dtype.itemsize < DTYPES[source].itemsize:
        if to == "bf16":
            return to_bf16 if source == "f32" else None
        return one_nan(cast, to)
    return None


# From names to functions


def _binary(function: Callable[..., Lanes]) -> Callable[..., Operation | None]:
    rounded = _rounded(function, 2)

    def make(name: str, modifiers: list[str], kind: str) -> Operation | None:
        if kind in ("f32", "f64"):
            return rounded(name, modifiers, kind)
        if modifiers != (["rn"] if "f" in kind else []):
            return None
        whole = _of_16_bits(function, kind) if "f" in kind else function
        return Operation(whole, (kind, kind), (kind,))

    return make


def _rounded(function: Callable[..., Lanes], count: int) -> Callable[..., Operation | None]:
    def make(name: str, modifiers: list[str], kind: str) -> Operation | None:
        if modifiers != ["rn"] or kind not in ("f32", "f64"):
            return None
        return Operation(one_nan(function, kind), (kind,) * count, (kind,))

    return make


def _of_16_bits(function: Callable[..., Lanes], kind: str) -> Callable[..., Lanes]:
    """Return the sum, difference or product of such numbers.

    Each is exact in float64, or rounded there without harm: it has more than twice the digits.
    """

    def rounded(*given: Lanes) -> Lanes:
        if kind.startswith("f16"):
            return function(*(each.astype(np.float64) for each in given)).astype(np.float16)
        exact = function(*(from_bf16(each).astype(np.float64) for each in given))
        return to_bf16(_to_odd(exact))

    if kind.startswith("f16"):
        rounded = one_nan(rounded, "f16")
    return _of_halves(rounded, kind) if kind.endswith("x2") else rounded


def _to_odd(values: Lanes) -> Lanes:
    """Convert to float32; the last bit of what is inexact is set, so it rounds like the exact."""
    result = values.astype(np.float32)
    larger = np.abs(result) > np.abs(values)
    bits = result.view(np.uint32) - larger.astype(np.uint32)
    return (bits | ((result != values) & ~np.isnan(values)).astype(np.uint32)).view(np.float32)


def _bits(name: str, modifiers: list[str], kind: str) -> Operation | None:
    """Make abs and neg of floating-point numbers, which change the sign alone, and other neg."""
    if modifiers or (name == "abs" and "f" not in kind):
        return None
    if "f" not in kind:
        return Operation(np.negative, (kind,), (kind,))
    size = DTYPES[kind].itemsize
    sign = np.dtype(f"u{size}").type(0x80008000 if "x2" in kind else 1 << (8 * size - 1))
    change = (lambda v: v & ~sign) if name == "abs" else (lambda v: v ^ sign)

    def function(v: Lanes) -> Lanes:
        return change(bits_of(v)).view(v.dtype)

    return Operation(function, (kind,), (kind,))


def _multiply(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if "f" in kind:
        return _binary(np.multiply)(name, modifiers, kind) if name == "mul" else None
    if (name, modifiers, kind) == ("mul", ["hi"], "u32"):
        return Operation(high_product, (kind, kind), (kind,))
    if modifiers == ["lo"]:
        product, result = np.multiply, kind
    elif modifiers == ["wide"] and kind in WIDER:
        product, result = wide_product, WIDER[kind]
    else:
        return None
    if name == "mul":
        return Operation(product, (kind, kind), (result,))
    return Operation(lambda a, b, c: product(a, b) + c, (kind, kind, result), (result,))


def _divide(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if "f" not in kind and not modifiers:
        return Operation(quotient if name == "div" else remainder, (kind, kind), (kind,))
    if (modifiers, kind) == (["full"], "f32"):
        return Operation(one_nan(inexact_quotient, kind), (kind, kind), (kind,))
    return _rounded(np.divide, 2)(name, modifiers, kind)


def _min_max(name: str, modifiers: list[str], kind: str) -> Operation | None:
    larger = name == "max"
    function = np.maximum if larger else np.minimum
    if (name, modifiers, kind) == ("max", ["relu"], "s32"):
        return Operation(lambda a, b: np.maximum(np.maximum(a, b), 0), (kind, kind), (kind,))
    if modifiers or "x2" in kind:
        return None
    if kind == "bf16":
        wide = _extreme(larger, "f32")

        def function(a: Lanes, b: Lanes) -> Lanes:
            return to_bf16(wide(from_bf16(a), from_bf16(b)))

    elif "f" in kind:
        function = _extreme(larger, kind)
    return Operation(function, (kind, kind), (kind,))


def _of_halves(function: Callable[..., Lanes], kind: str) -> Callable[..., Lanes]:
    """Return a function of pairs of 16-bit numbers, given one of such numbers."""

    def of_pairs(*pairs: Lanes) -> Lanes:
        low, high = (
            bits_of(function(*(_half(each, which, kind) for each in pairs))).astype(np.uint32)
            for which in (0, 1)
        )
        return (high << np.uint32(16)) | low

    return of_pairs


def _half(pairs: Lanes, which: int, kind: str) -> Lanes:
    half = (pairs >> np.uint32(16 * which)).astype(np.uint16)
    return half if kind == "bf16x2" else half.view(np.float16)


def _logic(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if modifiers:
        return None
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    if name == "not":
        return Operation(np.invert, (kind,), (kind,))
    return Operation(functions[name], (kind, kind), (kind,))


def _shift(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if modifiers:
        return None
    function = shift_left if name == "shl" else shift_right
    return Operation(function, (kind, "u32"), (kind,))


def _setp(name: str, modifiers: list[str], kind: str) -> Operation | None:
    compare = _comparison(modifiers[0], kind) if len(modifiers) == 1 else None
    if compare is None:
        return None
    if kind.startswith("bf16"):
        of_floats = compare

        def compare(a: Lanes, b: Lanes) -> Lanes:
            return of_floats(from_bf16(a), from_bf16(b))

    if not kind.endswith("x2"):
        return Operation(compare, (kind, kind), ("pred",))

    def of_halves(a: Lanes, b: Lanes) -> list[Lanes]:
        return [compare(_half(a, which, kind), _half(b, which, kind)) for which in (0, 1)]

    return Operation(of_halves, (kind, kind), ("pred", "pred"))


def _selp(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if modifiers:
        return None
    return Operation(lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"), (kind,))


def _cvt(name: str, modifiers: list[str], source: str) -> Operation | None:
    rounds = modifiers[:1] == ["rn"]
    to = modifiers[1:] if rounds else modifiers
    if len(to) != 1 or to[0] not in DTYPES:
        return None
    convert = conversion(to[0].removesuffix("x2"), source, rounds)
    if convert is None:
        return None
    if "x2" not in to[0]:
        return Operation(convert, (source,), (to[0],))

    def pair(high: Lanes, low: Lanes) -> Lanes:
        upper, lower = (bits_of(convert(each)).astype(np.uint32) for each in (high, low))
        return (upper << np.uint32(16)) | lower

    return Operation(pair, (source, source), ("b32",))


def _fixed(function: Callable[..., Lanes], *types: str) -> Callable[..., Operation]:
    """Make an operation whose first argument and result have the instruction's type."""

    def make(name: str, modifiers: list[str], kind: str) -> Operation | None:
        if modifiers:
            return None
        arguments = tuple(each or kind for each in types)
        return Operation(function, arguments, (kind,))

    return make


_MAKERS: dict[str, Callable[[str, list[str], str], Operation | None]] = {
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "abs": _bits,
    "neg": _bits,
    "mul": _multiply,
    "mad": _multiply,
    "div": _divide,
    "rem": _divide,
    "sqrt": _rounded(np.sqrt, 1),
    "min": _min_max,
    "max": _min_max,
    "fma": _rounded(fma, 3),
    **dict.fromkeys(("and", "or", "xor", "not"), _logic),
    "shl": _shift,
    "shr": _shift,
    "setp": _setp,
    "selp": _selp,
    "cvt": _cvt,
    "mov": _fixed(lambda a: a, ""),
    "bfe": _fixed(extract_field, "", "u32", "u32"),
    "prmt": _fixed(permute_bytes, "b32", "b32", "b32"),
}
