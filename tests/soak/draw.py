"""Draws the case of a seed."""

import math
import random
from collections.abc import Sequence

from cases import EPS, KINDS, PARAMETERS
from layouts import Memory
from soak_case import ALL_VALUES, Case
from values import TYPES, VALUES, parameter_types

# How each front end is called, the simplest first, and how often. The functions of calls_*.py say
# what each means.
WAYS: dict[str, dict[str, float]] = {
    "numpy": {"functions": 6, "layers": 1},
    "torch": {
        **{"functions": 4, "axes": 3, "modules": 2, "operators": 2, "top_level": 2},
        **{"accelerated": 1, "compiled": 0.005},
    },
    "jax": {"jit": 3, "eager": 1},
    "tensorflow": {"eager": 3, "tape": 2, "graph": 2, "xla": 0.1},
    "keras_tensorflow": {"functions": 3, "layers": 1},
    "keras_jax": {"functions": 3, "layers": 1},
    "keras_torch": {"functions": 3, "layers": 1},
}
HAS_STRIDES = ("numpy", "torch")
SETS_THREADS = ("numpy", "torch", "tensorflow")

# Where a compiler works for each new shape, so many cases in a row differ in their numbers alone.
SAME_CALL = {"jax": 10, "keras_jax": 10, "tensorflow": 4, "keras_tensorflow": 4}

# Values for XLA, which flushes subnormal numbers to 0.
ORDINARY = ("ordinary", "off_zero", "mean_1e2", "outlier", "alternating", "ramp")

MORE_EPS = (*EPS, 1e-6, 1e-30, 5e-324, 1e10, 1e30, 1e300)
FLOAT32_EPS, FLOAT64_EPS = 2.0**-23, 2.0**-52

Shape = tuple[int, ...]


def draw(framework: str, seed: int) -> Case:
    """Draw a case of a framework; the same for the same seed."""
    call = random.Random(f"{framework} call {seed // SAME_CALL.get(framework, 1)}")
    numbers = random.Random(f"{framework} numbers {seed}")
    shape, axes = _shape(call)
    dtype = call.choice(TYPES)
    kind = call.choice(KINDS)
    parameters = call.choice(
        [each for each in PARAMETERS if kind == "layer_norm" or "bias" not in each]
    )
    passes_eps = call.random() < 0.6
    case = Case(
        kind=kind,
        dtype=dtype,
        parameters=parameters,
        parameter_dtype=call.choice((None, *parameter_types(dtype)[1:])) if parameters else None,
        eps=call.choice(MORE_EPS),
        framework=framework,
        way=call.choices(list(WAYS[framework]), list(WAYS[framework].values()))[0],
        shape=shape,
        axis=_as_given(call, axes, len(shape)),
        passes_eps=passes_eps,
        need=_need(call),
        values=_values(numbers, shape, axes),
        dy_values=_values(numbers, shape, axes),
        parameter_values=numbers.choice(("ordinary", "ordinary", "tiny", "large", "signed_zeros")),
        seed=numbers.randrange(2**32),
        threads=call.choice((1, 2, 3)) if framework in SETS_THREADS else 1,
        also=_further_check(call, framework),
    )
    if framework in HAS_STRIDES:
        case = case.but(
            x_memory=_memory(call, shape, 0.5),
            dy_memory=_memory(call, shape, 0.4),
            parameter_memory=_memory(call, case.normalized_shape, 0.15),
        )
    return fitted(case)


def fitted(case: Case) -> Case:
    """Change what the way of calling does not take."""
    if not is_possible(case):
        case = case.but(way=next(iter(WAYS[case.framework])))
        if not is_possible(case):
            case = case.but(way="axes")  # PyTorch's functions normalize the last axes only
    if case.way == "compiled" and case.also == "python_threads":
        # A call begins with torch.compiler.reset(), which crashes while another thread compiles.
        case = case.but(also="")
    if case.way == "xla":
        values, dy_values = (
            each if each in ORDINARY else "ordinary" for each in (case.values, case.dy_values)
        )
        case = case.but(
            values=values, dy_values=dy_values, parameter_values="ordinary", eps=1e-5, also=""
        )
    if not case.passes_eps:
        case = case.but(eps=default_eps(case))
    if "alone" in case.also and (0 in case.axes or case.shape[0] < 2):
        case = case.but(also="")
    return case


def is_possible(case: Case) -> bool:
    """Tell whether the way of calling takes such a case."""
    framework, way = case.framework, case.way
    of_keras = framework.startswith("keras") and way == "layers"
    last_axes_only = way == "accelerated" or (framework, way) in (
        *(("torch", "functions"), ("torch", "compiled"), ("numpy", "layers")),
    )
    if last_axes_only and not case.has_trailing_axes:
        return False
    if way == "accelerated":
        return not case.zero_centered_weight
    if of_keras and (case.parameter_dtype or (case.kind == "rms_norm" and not case.has_weight)):
        return False
    if way == "layers" and case.zero_centered_weight:
        return False
    return way not in ("layers", "modules") or case.has_weight or not case.has_bias


def default_eps(case: Case) -> float:
    """Return the eps of a call that gives none."""
    if case.framework.startswith("keras") and case.way == "layers":
        return 1e-3 if case.kind == "layer_norm" else 1e-6
    if case.kind == "layer_norm":
        return 1e-5
    if case.framework == "torch" and case.way not in ("top_level", "operators"):
        return FLOAT64_EPS if case.dtype == "float64" else FLOAT32_EPS
    return 1e-6


def _shape(rng: random.Random) -> tuple[Shape, tuple[int, ...]]:
    """Draw a shape and the normalized axes."""
    kind = rng.choices(
        ("small", "tail", "wide", "many_rows", "much_work", "large"), (60, 28, 2, 4, 2, 1)
    )[0]
    if kind == "small":
        rows, cols = rng.randint(1, 24), rng.choice((rng.randint(1, 24), rng.randint(1, 99)))
    elif kind == "tail":
        cols = max(1, rng.choice((8, 16, 32, 64)) * rng.randint(1, 9) + rng.choice((-1, 0, 1, 3)))
        rows = rng.randint(1, 20)
    elif kind == "wide":
        rows, cols = rng.randint(1, 3), rng.randint(1000, rng.choice((20_000, 20_000, 100_000)))
    elif kind == "many_rows":
        rows, cols = rng.randint(500, 8000), rng.randint(1, 9)
    elif kind == "much_work":
        rows, cols = rng.randint(100, 400), rng.randint(200, 800)
    else:
        rows, cols = rng.randint(2000, 40_000), rng.randint(1, 20)
    kept = _factors(rng, rows, rng.choice((0, 1, 1, 1, 2, 2, 3)) if rows > 1 else rng.randint(0, 1))
    normalized = _factors(rng, cols, rng.choice((1, 1, 1, 1, 2, 2, 3)))
    normalized = normalized[: 5 - len(kept)] or normalized[:1]
    sizes = [(size, False) for size in kept] + [(size, True) for size in normalized]
    if rng.random() < 0.5:
        rng.shuffle(sizes)
    if rng.random() < 0.02:
        at = rng.randrange(len(sizes))
        sizes[at] = (0, sizes[at][1])
    axes = tuple(axis for axis, (_, is_normalized) in enumerate(sizes) if is_normalized)
    return tuple(size for size, _ in sizes), axes


def _factors(rng: random.Random, size: int, count: int) -> list[int]:
    """Split a size into so many factors, of which some may be 1."""
    factors = [size] if count else []
    while len(factors) < count:
        largest = factors.pop(factors.index(max(factors)))
        divisors = [each for each in range(1, min(largest, 1000) + 1) if largest % each == 0]
        divisor = rng.choice(divisors)
        factors += [divisor, largest // divisor]
    return factors


def _as_given(rng: random.Random, axes: Sequence[int], ndim: int) -> int | tuple[int, ...]:
    """Return the axes in any order, some counted from the end; one of them often as an int."""
    given = [axis - ndim if rng.random() < 0.5 else axis for axis in axes]
    rng.shuffle(given)
    return given[0] if len(given) == 1 and rng.random() < 0.8 else tuple(given)


def _need(rng: random.Random) -> str:
    chosen = rng.random()
    if chosen < 0.3:
        return ""
    if chosen < 0.8:
        return "dx dweight dbias"
    return rng.choice(("dx", "dweight", "dbias", "dx dweight", "dx dbias", "dweight dbias"))


def _values(rng: random.Random, shape: Shape, axes: Sequence[int]) -> str:
    values = rng.choice(("ordinary", "mixed", rng.choice(list(ALL_VALUES))))
    rows = math.prod(size for axis, size in enumerate(shape) if axis not in axes)
    if values == "mixed" and rows > 300:  # made one row at a time
        values = rng.choice([each for each in VALUES if each != "mixed"])
    return values


def _further_check(rng: random.Random, framework: str) -> str:
    chances = {"": 60, "alone": 15, "python_threads": 2}
    if framework in SETS_THREADS:
        chances["threads"] = 10
    if framework in HAS_STRIDES:
        chances |= {"out": 10, "fork": 2}
    if framework == "numpy":
        chances["in_place"] = 5
    return rng.choices(list(chances), list(chances.values()))[0]


def _memory(rng: random.Random, shape: Shape, chance: float) -> Memory | None:
    if rng.random() > chance:
        return None
    order = list(range(len(shape)))
    steps = [1] * len(shape)
    if rng.random() < 0.6:
        rng.shuffle(order)
    if rng.random() < 0.6:
        steps = [rng.choice((1, 1, 1, -1, 2, -2, 3, 0)) or int(size == 0) for size in shape]
    margins = [rng.choice((0, 0, 1, 2)) for _ in shape]
    return Memory(tuple(order), tuple(steps), tuple(margins), rng.choice((0, 0, 8, 24, 1, 2)))
