"""The contract for arrays, parameters and options that hypothesis generates."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from calls import assert_equal_values, assert_same_bits, backward, forward, unchanged
from cases import EPS, KINDS, PARAMETERS, Case
from checkers import judge_gradients, judge_y
from layouts import Array, Memory, from_rows, laid_out, poisoned
from values import LIMITS, TYPES, VALUES, dtype_of, parameter_types

import layernorm.numpy as ours

pytest.importorskip("hypothesis")
from hypothesis import event, given, note
from hypothesis import strategies as st

MOST_ELEMENTS = 6000


@dataclass(frozen=True)
class Problem(Case):
    """A case with a shape and axes of its own, not those of a named layout."""

    layout: str = "made up"
    its_shape: tuple[int, ...] = ()
    its_axis: tuple[int, ...] = ()

    shape = property(lambda self: self.its_shape)
    axis = property(lambda self: self.its_axis)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Draw one to five axes, often one of them long, past the blocks of the kernels."""
    shape = []
    room = MOST_ELEMENTS
    for _ in range(draw(st.integers(1, 5))):
        most = max(1, room)
        size = draw(st.one_of(st.integers(1, min(most, 9)), st.integers(1, most)))
        shape.append(size)
        room //= size
    return tuple(draw(st.permutations(shape)))


@st.composite
def problems(
    draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, first_axis_may_be_normalized: bool = True
) -> Problem:
    shape = draw(shapes())
    first = 0 if first_axis_may_be_normalized else 1
    if first == len(shape):
        shape = (1, *shape)
    axes = draw(st.sets(st.integers(first, len(shape) - 1), min_size=1))
    signed = [a - len(shape) if draw(st.booleans()) else a for a in sorted(axes)]
    axis = tuple(draw(st.permutations(signed)))
    dtype = draw(st.sampled_from(TYPES))
    parameters = draw(st.sampled_from(PARAMETERS))
    types = parameter_types(dtype) if parameters else (dtype,)
    return Problem(
        kind=draw(st.sampled_from(kinds)),
        dtype=dtype,
        cols=math.prod(shape[a] for a in axes),
        values=draw(st.sampled_from(list(VALUES))),
        dy_values=draw(st.sampled_from(["off_zero", "off_zero", *VALUES])),
        parameters=parameters,
        parameter_dtype=draw(st.sampled_from(types)),
        eps=draw(st.sampled_from(EPS)),
        seed=draw(st.integers(0, 2**16)),
        its_shape=shape,
        its_axis=axis,
    )


def extreme_numbers(dtype: str) -> st.SearchStrategy[float]:
    """Draw zeros, the ends of the type's range, powers of two."""
    largest, normal, smallest, epsilon = LIMITS[dtype]
    ends = [0.0, -0.0, 1.0, 1 + epsilon, largest, -largest, normal, smallest, -smallest]
    exponents = st.integers(round(math.log2(smallest)), round(math.log2(largest)) - 1)
    powers = st.builds(lambda e, sign: sign * 2.0**e, exponents, st.sampled_from([1, -1]))
    return st.one_of(st.sampled_from(ends), powers)


@st.composite
def arrays(draw: st.DrawFn, problem: Problem, name: str) -> Array:
    """Draw x or dy: values of one kind, a few replaced by extreme ones, in any strides."""
    rng = np.random.default_rng([problem.seed, ("x", "dy").index(name)])
    values = problem.values if name == "x" else problem.dy_values
    rows, cols = math.prod(problem.statistics_shape), math.prod(problem.normalized_shape)
    limits, dtype = LIMITS[problem.dtype], dtype_of(problem.dtype)
    numbers = VALUES[values](rng, rows, cols, limits).clip(-limits.largest, limits.largest)
    array = from_rows(numbers.astype(dtype), problem.shape, problem.axis)
    replaced = draw(st.lists(extreme_numbers(problem.dtype), max_size=4))
    places = rng.integers(0, array.size, len(replaced))
    array.ravel()[places] = np.array(replaced, np.float64).astype(dtype)
    return draw(memory_of(array))


@st.composite
def memory_of(draw: st.DrawFn, array: Array) -> Array:
    """Copy the array to memory with its axes in any order, steps from -2 to 3 and any offset."""
    if draw(st.booleans()):
        return array
    order = draw(st.permutations(range(array.ndim)))
    steps = [draw(st.sampled_from([1, 1, 1, -1, 2, -2, 3, 0])) for _ in order]
    margins = [draw(st.integers(0, 2)) for _ in order]
    offset = draw(st.sampled_from([0, 0, array.itemsize, 3 * array.itemsize, 1]))
    return laid_out(array, Memory(tuple(order), tuple(steps), tuple(margins), offset))


@st.composite
def parameters_of(draw: st.DrawFn, problem: Problem) -> tuple[Array | None, Array | None]:
    rng = np.random.default_rng([problem.seed, 2])
    dtype = dtype_of(problem.parameter_dtype or problem.dtype)
    scale = draw(st.sampled_from([1.0, 1.0, 1e-3, 30.0, 0.0]))
    weight = rng.standard_normal(problem.normalized_shape) * scale
    bias = rng.standard_normal(problem.normalized_shape)
    return (
        draw(memory_of(weight.astype(dtype))) if problem.has_weight else None,
        draw(memory_of(bias.astype(dtype))) if problem.has_bias else None,
    )


@given(st.data())
def test_y_is_within_its_bound(data) -> None:
    problem = data.draw(problems())
    x = data.draw(arrays(problem, "x"))
    weight, bias = data.draw(parameters_of(problem))
    event(f"{problem.kind} {problem.dtype}")
    note(f"strides {x.strides}")
    with unchanged(x=x, weight=weight, bias=bias):
        y, _ = forward(ours, problem, x, weight, bias)
    assert y.dtype == dtype_of(problem.dtype)
    judge_y(problem, y, x, weight, bias)


@given(st.data())
def test_gradients_are_within_their_bounds(data) -> None:
    problem = data.draw(problems())
    x = data.draw(arrays(problem, "x"))
    dy = data.draw(arrays(problem, "dy"))
    weight, bias = data.draw(parameters_of(problem))
    event(f"{problem.kind} {problem.dtype}")
    note(f"strides {x.strides}, {dy.strides}")
    _, stats = forward(ours, problem, x, weight, bias)
    with unchanged(x=x, dy=dy, weight=weight, rstd=stats.rstd):
        gradients = backward(ours, problem, dy, x, stats, weight)
    judge_gradients(problem, gradients, dy, x, weight)


@given(st.data())
def test_out_of_any_strides_gets_the_bits_of_a_fresh_y(data) -> None:
    problem = data.draw(problems())
    x = data.draw(arrays(problem, "x"))
    weight, bias = data.draw(parameters_of(problem))
    expected, _ = forward(ours, problem, x, weight, bias)
    out = data.draw(memory_of(poisoned(x.shape, dtype_of(problem.dtype))))
    if not out.flags.writeable:  # a step of 0
        out = x if x.flags.writeable else np.empty(x.shape, x.dtype)
    y, _ = forward(ours, problem, x, weight, bias, out=out)
    assert y is out
    assert_same_bits(out, expected, "out")


@given(st.data())
def test_a_row_alone_gives_the_bits_that_it_gets_among_others(data) -> None:
    problem = data.draw(problems(first_axis_may_be_normalized=False))
    x = data.draw(arrays(problem, "x"))
    dy = data.draw(arrays(problem, "dy"))
    weight, bias = data.draw(parameters_of(problem))
    y, stats = forward(ours, problem, x, weight, bias)
    dx, _, _ = backward(ours, problem, dy, x, stats, weight)
    row = data.draw(st.integers(0, len(x) - 1))
    only = slice(row, row + 1)
    alone, stats = forward(ours, problem, x[only], weight, bias)
    assert_same_bits(alone, y[only], "y")
    alone, _, _ = backward(ours, problem, dy[only], x[only], stats, weight)
    assert_same_bits(alone, dx[only], "dx")


@given(st.data())
def test_nan_and_infinity_fill_their_row_and_no_other(data) -> None:
    problem = data.draw(problems())
    x = data.draw(arrays(problem, "x")).copy()
    dy = data.draw(arrays(problem, "dy"))
    weight, bias = data.draw(parameters_of(problem))
    clean, stats = forward(ours, problem, x, weight, bias)
    clean_dx, _, _ = backward(ours, problem, dy, x, stats, weight)
    place = tuple(data.draw(st.integers(0, size - 1)) for size in x.shape)
    x[place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    y, stats = forward(ours, problem, x, weight, bias)
    dx, _, _ = backward(ours, problem, dy, x, stats, weight)
    normalized = {a % x.ndim for a in problem.axis}
    row = tuple(slice(None) if a in normalized else i for a, i in enumerate(place))
    others = np.ones(x.shape, bool)
    others[row] = False
    for got, unaffected in ((y, clean), (dx, clean_dx)):
        assert np.isnan(got[row].astype(np.float64)).all()
        assert_same_bits(got[others], unaffected[others], "the other rows")


@given(st.data())
def test_a_constant_row_gives_exactly_bias(data) -> None:
    problem = data.draw(problems(kinds=("layer_norm",)))
    constants = data.draw(
        st.lists(extreme_numbers(problem.dtype) | st.floats(-1e4, 1e4), min_size=1, max_size=9)
    )
    dtype, rows = dtype_of(problem.dtype), math.prod(problem.statistics_shape)
    x = np.resize(constants, problem.statistics_shape).astype(dtype)
    x = data.draw(memory_of(np.broadcast_to(x, problem.shape).copy()))
    weight, bias = data.draw(parameters_of(problem))
    y, _ = forward(ours, problem, x, weight, bias)
    one_row = np.zeros(problem.cols, dtype) if bias is None else bias.astype(dtype).reshape(-1)
    expected = from_rows(np.tile(one_row, (rows, 1)), problem.shape, problem.axis)
    assert_equal_values(y, expected, "y")
