"""PTX's operations on arrays of lanes, bit for bit.

`operation("fma.rn.f32")` gives a function of arrays, and the types of its arguments and results.
A NaN has the bits that NumPy gives it, but for conversions, whose NaN is PTX's.
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


def to_bf16(values: Lanes, *, rounds: bool = True) -> Lanes:
    """Round to nearest, ties to even, or toward zero."""
    bits = values.view(np.uint32)
    if rounds:
        bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    high = (bits >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), NAN["bf16"], high)


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


def _extreme(larger: bool, propagates: bool, kind: str) -> Callable[..., Lanes]:
    pick = np.fmax if larger else np.fmin
    merge = np.bitwise_and if larger else np.bitwise_or  # of +0 and -0

    def extreme(a: Lanes, b: Lanes) -> Lanes:
        equal = merge(bits_of(a), bits_of(b)).view(a.dtype)
        result = np.where(a == b, equal, pick(a, b))
        nan = np.isnan(a) | np.isnan(b) if propagates else np.isnan(result)
        return np.where(nan, NAN[kind].view(a.dtype), result) if nan.any() else result

    return extreme


def quotient(a: Lanes, b: Lanes) -> Lanes:
    """Divide integers, toward zero; by zero all bits are set."""
    floor, rest = np.divmod(a, b)
    if a.dtype.kind == "i":
        floor = floor + ((rest != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return np.where(b == 0, ~np.zeros(1, a.dtype), floor)


def remainder(a: Lanes, b: Lanes) -> Lanes:
    return a - quotient(a, b) * b


def high_product(a: Lanes, b: Lanes) -> Lanes:
    half = a.itemsize * 4
    if a.itemsize < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(2 * half)).astype(a.dtype)
    low, bits = a.dtype.type(2**half - 1), a.dtype.type(half)
    a_low, a_high, b_low, b_high = a & low, a >> bits, b & low, b >> bits
    carry = ((a_low.view("u8") * b_low.view("u8")) >> np.uint64(half)).view(a.dtype)
    middle = a_high * b_low + carry
    other = a_low * b_high + (middle & low)
    return a_high * b_high + (middle >> bits) + (other >> bits)


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
    length = np.minimum(length, width)
    unsigned = bits_of(a)
    mask = _low_ones(length, unsigned.dtype)
    field = shift_right(unsigned, position) & mask
    if a.dtype.kind == "i":
        last = np.minimum(position + length - np.uint32(1), width - 1)
        negative = (shift_right(unsigned, last) & unsigned.dtype.type(1)).astype(bool)
        inside = np.minimum(length, np.maximum(width - position.astype(np.int64), 0))
        above = ~_low_ones(inside.astype(np.uint32), unsigned.dtype)
        field = np.where(negative & (length > 0), field | above, field)
    return field.view(a.dtype)


def insert_field(a: Lanes, into: Lanes, position: Lanes, length: Lanes) -> Lanes:
    """Compute `bfi`."""
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = shift_left(_low_ones(np.minimum(length, 8 * a.itemsize), a.dtype), position)
    return (into & ~mask) | (shift_left(a, position) & mask)


def _low_ones(count: Lanes, dtype: np.dtype[Any]) -> Lanes:
    return shift_left(np.ones(1, dtype), count) - dtype.type(1)


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


def any_logic(a: Lanes, b: Lanes, c: Lanes, table: Lanes) -> Lanes:
    """Compute `lop3`: bit 4 * a + 2 * b + c of the table."""
    result = np.zeros(1, a.dtype)
    for place in range(8):
        if table.flat[0] >> place & 1:
            term = a if place & 4 else ~a
            term = term & (b if place & 2 else ~b)
            result = result | (term & (c if place & 1 else ~c))
    return result


# Comparison


def _comparison(name: str, kind: str) -> Callable[..., Lanes]:
    ordered = {"eq": operator.eq, "lt": operator.lt, "le": operator.le, "gt": operator.gt}
    ordered |= {"ge": operator.ge}
    opposite = {"ltu": operator.ge, "leu": operator.gt, "gtu": operator.le, "geu": operator.lt}
    unsigned = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
    if kind[0] not in "fb" or kind in ("b16", "b32", "b64"):
        found = (ordered | unsigned | {"ne": operator.ne}).get(name)
    elif name in ordered:
        found = ordered[name]
    elif name in opposite:
        found = _inverted(opposite[name])
    else:
        found = {
            "ne": lambda a, b: (a < b) | (a > b),
            "equ": lambda a, b: ~((a < b) | (a > b)),
            "neu": operator.ne,
            "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
            "nan": lambda a, b: np.isnan(a) | np.isnan(b),
        }.get(name)
    if found is None:
        raise NotImplementedError(f"setp.{name}.{kind}")
    return found


def _inverted(compare: Callable[..., Lanes]) -> Callable[..., Lanes]:
    return lambda a, b: ~compare(a, b)


# Conversion


def conversion(to: str, source: str, modifiers: tuple[str, ...]) -> Callable[[Lanes], Lanes]:
    rounding = next((each for each in modifiers if each[0] == "r"), None)
    saturates = "sat" in modifiers
    if set(modifiers) - {rounding, "sat"} or rounding in ("rna", "rs"):
        raise NotImplementedError(f"cvt.{'.'.join(modifiers)}.{to}.{source}")
    to_float, from_float = "f" in to, "f" in source
    if to_float and from_float:
        return functools.partial(_float_to_float, to, source, rounding, saturates)
    if from_float:
        return functools.partial(_float_to_int, DTYPES[to], source, rounding)
    if to_float:
        if rounding != "rn" or to == "bf16" or saturates:
            raise NotImplementedError(f"cvt.{'.'.join(modifiers)}.{to}.{source}")
        return lambda values: values.astype(DTYPES[to])
    return functools.partial(_int_to_int, DTYPES[to], saturates)


def _int_to_int(to: np.dtype[Any], saturates: bool, values: Lanes) -> Lanes:
    if saturates:
        least = max(np.iinfo(to).min, np.iinfo(values.dtype).min)
        most = min(np.iinfo(to).max, np.iinfo(values.dtype).max)
        values = np.clip(values, least, most)
    return values.astype(to)


_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _float_to_int(to: np.dtype[Any], source: str, rounding: str, values: Lanes) -> Lanes:
    if source == "bf16":
        values = from_bf16(values)
    whole = _TO_INTEGER[rounding](values.astype(np.float64))
    least, most = float(np.iinfo(to).min), float(np.iinfo(to).max)
    large, nan = whole >= most, np.isnan(whole)
    inside = np.where(large | nan | (whole < least), 0.0, whole).astype(to)
    inside = np.where(large, np.iinfo(to).max, np.where(whole < least, np.iinfo(to).min, inside))
    of_nan = np.iinfo(to).min if to.itemsize == 8 and to.kind == "i" else 0
    of_nan = 2**63 if to == np.uint64 else of_nan
    return np.where(nan, to.type(of_nan), inside.astype(to))


def _float_to_float(
    to: str, source: str, rounding: str | None, saturates: bool, values: Lanes
) -> Lanes:
    if source == "bf16":
        values = from_bf16(values)
    if rounding in _TO_INTEGER:
        values = _TO_INTEGER[rounding](values)
    if saturates:
        values = np.where(np.isnan(values), 0, np.clip(values, 0, 1)).astype(values.dtype)
    if to == "bf16":
        if values.dtype != np.float32 or rounding not in ("rn", "rz"):
            raise NotImplementedError(f"cvt.{rounding}.bf16.{source}")
        return to_bf16(values, rounds=rounding == "rn")
    dtype = DTYPES[to]
    if dtype.itemsize >= values.itemsize:
        return values.astype(dtype)
    result = values.astype(dtype)
    if rounding in ("rz", "rm", "rp"):
        toward = {"rz": np.copysign(0, values), "rm": -np.inf, "rp": np.inf}[rounding]
        above, below = result > values, result < values
        wrong = {"rz": np.abs(result) > np.abs(values), "rm": above, "rp": below}[rounding]
        result = np.where(wrong, np.nextafter(result, dtype.type(toward)), result)
    return np.where(np.isnan(values), NAN[to].view(dtype), result)


# From names to functions


def _binary(function: Callable[..., Lanes]) -> Callable[..., Operation | None]:
    def make(name: str, modifiers: list[str], kind: str) -> Operation | None:
        if set(modifiers) - {"rn"}:
            return None
        return Operation(_of_16_bits(function, kind), (kind, kind), (kind,))

    return make


def _of_16_bits(function: Callable[..., Lanes], kind: str) -> Callable[..., Lanes]:
    """Return the sum, difference or product of such numbers, if `kind` is one of theirs.

    Each is exact in float64, or rounded there without harm: it has more than twice the digits.
    """
    if "f16" not in kind:
        return function

    def rounded(*given: Lanes) -> Lanes:
        if kind.startswith("f16"):
            return function(*(each.astype(np.float64) for each in given)).astype(np.float16)
        exact = function(*(from_bf16(each).astype(np.float64) for each in given))
        return to_bf16(_to_odd(exact))

    return _of_halves(rounded, kind) if kind.endswith("x2") else rounded


def _to_odd(values: Lanes) -> Lanes:
    """Convert to float32; the last bit of what is inexact is set, so it rounds like the exact."""
    result = values.astype(np.float32)
    larger = np.abs(result) > np.abs(values)
    bits = result.view(np.uint32) - larger.astype(np.uint32)
    return (bits | ((result != values) & ~np.isnan(values)).astype(np.uint32)).view(np.float32)


def _unary(function: Callable[..., Lanes], *allowed: str) -> Callable[..., Operation | None]:
    def make(name: str, modifiers: list[str], kind: str) -> Operation | None:
        if set(modifiers) - set(allowed) or "f16" in kind:
            return None
        return Operation(function, (kind,), (kind,))

    return make


def _bits(name: str, modifiers: list[str], kind: str) -> Operation | None:
    """Make abs and neg, which change the sign alone."""
    if modifiers:
        return None
    if "f" not in kind:
        function = np.abs if name == "abs" else np.negative
    else:
        size = DTYPES[kind].itemsize
        sign = np.dtype(f"u{size}").type(0x80008000 if "x2" in kind else 1 << (8 * size - 1))
        change = (lambda v: v & ~sign) if name == "abs" else (lambda v: v ^ sign)

        def function(v: Lanes) -> Lanes:
            return change(bits_of(v)).view(v.dtype)

    return Operation(function, (kind,), (kind,))


def _multiply(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if "f" in kind:
        return _binary(np.multiply)(name, modifiers, kind) if name == "mul" else None
    functions = {"lo": np.multiply, "hi": high_product, "wide": wide_product}
    if len(modifiers) != 1 or modifiers[0] not in functions:
        return None
    mode = modifiers[0]
    result = WIDER[kind] if mode == "wide" else kind
    product = functions[mode]
    if name == "mul":
        return Operation(product, (kind, kind), (result,))
    return Operation(lambda a, b, c: product(a, b) + c, (kind, kind, result), (result,))


def _divide(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if "f" not in kind and not modifiers:
        function = quotient if name == "div" else remainder
    elif kind in ("f32", "f64") and modifiers == ["rn"]:
        function = np.divide
    elif (modifiers, kind) == (["full"], "f32"):
        function = inexact_quotient
    else:
        return None
    return Operation(function, (kind, kind), (kind,))


def _reciprocal(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if modifiers != ["rn"] or kind not in ("f32", "f64"):
        return None
    return Operation(lambda a: a.dtype.type(1) / a, (kind,), (kind,))


def _min_max(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if "f" in kind:
        if set(modifiers) - {"NaN"}:
            return None
        larger, propagates = name == "max", "NaN" in modifiers
        if kind in ("bf16", "bf16x2"):
            wide = _extreme(larger, propagates, "f32")

            def function(a: Lanes, b: Lanes) -> Lanes:
                return to_bf16(wide(from_bf16(a), from_bf16(b)), rounds=False)

        else:
            function = _extreme(larger, propagates, kind.removesuffix("x2"))
        if kind.endswith("x2"):
            function = _of_halves(function, kind)
    elif modifiers == ["relu"]:
        extreme = np.maximum if name == "max" else np.minimum

        def function(a: Lanes, b: Lanes) -> Lanes:
            return np.maximum(extreme(a, b), a.dtype.type(0))

    elif not modifiers:
        function = np.maximum if name == "max" else np.minimum
    else:
        return None
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


def _fma(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if modifiers != ["rn"] or kind not in ("f32", "f64"):
        return None
    return Operation(fma, (kind,) * 3, (kind,))


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
    combine = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    if len(modifiers) != 1 and (len(modifiers) != 2 or modifiers[1] not in combine):
        return None
    compare = _comparison(modifiers[0], kind)
    if kind.startswith("bf16"):
        of_floats = compare

        def compare(a: Lanes, b: Lanes) -> Lanes:
            return of_floats(from_bf16(a), from_bf16(b))

    if kind.endswith("x2") and len(modifiers) == 1:

        def of_halves(a: Lanes, b: Lanes) -> list[Lanes]:
            return [compare(_half(a, which, kind), _half(b, which, kind)) for which in (0, 1)]

        return Operation(of_halves, (kind, kind), ("pred", "pred"))
    if kind.endswith("x2"):
        return None
    if len(modifiers) == 2:
        merge = combine[modifiers[1]]
        return Operation(lambda a, b, c: merge(compare(a, b), c), (kind, kind, "pred"), ("pred",))
    return Operation(compare, (kind, kind), ("pred",))


def _selp(name: str, modifiers: list[str], kind: str) -> Operation | None:
    if modifiers:
        return None
    return Operation(lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"), (kind,))


def _cvt(name: str, modifiers: list[str], source: str) -> Operation | None:
    to = next((each for each in modifiers if each in DTYPES), None)
    if to is None:
        return None
    rest = tuple(each for each in modifiers if each != to)
    if to in ("bf16x2", "f16x2"):
        half = conversion(to[:-2], source, rest)

        def pair(high: Lanes, low: Lanes) -> Lanes:
            upper, lower = (bits_of(half(each)).astype(np.uint32) for each in (high, low))
            return (upper << np.uint32(16)) | lower

        return Operation(pair, (source, source), ("b32",))
    return Operation(conversion(to, source, rest), (source,), (to,))


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
    "rcp": _reciprocal,
    "sqrt": _unary(np.sqrt, "rn"),
    "min": _min_max,
    "max": _min_max,
    "fma": _fma,
    **dict.fromkeys(("and", "or", "xor", "not"), _logic),
    "shl": _shift,
    "shr": _shift,
    "setp": _setp,
    "selp": _selp,
    "cvt": _cvt,
    "mov": _unary(lambda a: a),
    "bfe": _fixed(extract_field, "", "u32", "u32"),
    "bfi": _fixed(insert_field, "", "", "u32", "u32"),
    "prmt": _fixed(permute_bytes, "b32", "b32", "b32"),
    "lop3": _fixed(any_logic, "b32", "b32", "b32", "u32"),
}
