"""docs/specification.md, "The same bits": what may decide the bits of a result."""

import itertools

import numpy as np
import pytest
from calls import assert_same_bits, forward_and_backward
from cases import KINDS, Case, kept_axes_cases, of_each_kind
from checkers import (
    ROWWISE,
    check_alignment,
    check_batch_of_one,
    check_place_of_a_row,
    check_thread_counts,
)
from layouts import dense
from values import TYPES

import layernorm.numpy as ours

# 3 and 17 leave a vector partly empty, 257 and 769 the last of several. 4097 exceeds any block,
# 20011 the first cache.
COLS = (1, 3, 17, 64, 257, 769, 4097, 20011)
THREADS = (1, 2, 3, 16)

# With work for 16 threads: many short rows, ordinary ones, a few long ones, and strided axes whose
# inner part may be divided as well as the outer one.
LARGE = {
    "many_short_rows": {"cols": 7, "rows": 250_007},
    "rows": {"cols": 768, "rows": 2503},
    "long_rows": {"cols": 2**19 + 1, "rows": 5},
    "channels_first": {"cols": 31, "rows": 1009, "layout": "channels_first_67"},
    "first_axis": {"cols": 100_003, "rows": None, "layout": "first_axis"},
    "axes_apart": {"cols": 768, "rows": 503, "layout": "axes_apart"},
}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)
each_large = pytest.mark.parametrize("large", list(LARGE))


@pytest.mark.parametrize("cols", COLS)
@each_type
@each_kind
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(kind, dtype, cols) -> None:
    check_batch_of_one(ours, Case(kind, dtype, cols, rows=37))


@pytest.mark.parametrize("layout", ["channels_first", "channels_first_67", "axes_apart"])
@each_type
@each_kind
def test_a_batch_of_one_gives_the_bits_of_its_sample_in_a_batch(kind, dtype, layout) -> None:
    check_batch_of_one(ours, Case(kind, dtype, 48, layout=layout, rows=9))


@pytest.mark.parametrize("values", ["mean_1e4", "near_largest", "subnormals", "mixed"])
@each_type
@each_kind
def test_a_batch_of_one_gives_the_same_bits_for_hard_values(kind, dtype, values) -> None:
    check_batch_of_one(ours, Case(kind, dtype, 67, values=values, rows=37))


@pytest.mark.parametrize("layout", ["contiguous", "channels_first", "axes_apart"])
@each_type
@each_kind
def test_the_place_of_a_row_changes_no_bit(kind, dtype, layout) -> None:
    check_place_of_a_row(ours, Case(kind, dtype, 48, values="mixed", layout=layout, rows=41))


KEPT_AXES = of_each_kind(kept_axes_cases)
# Their rows are strided, but contiguous where parameters vary along the axes behind.
BEHIND = [case for case in KEPT_AXES if case.axis == 1 and max(case.along, default=0) > 1]


@pytest.mark.parametrize(
    "case", [case for case in KEPT_AXES if case not in BEHIND], ids=lambda case: case.id
)
def test_a_member_gets_the_bits_of_a_call_of_its_own(case) -> None:
    x, dy, weight, bias = case.arrays()
    whole = forward_and_backward(ours, case, x, dy, weight, bias)
    own = case.but(along=None)
    for index in itertools.product(*(range(case.shape[axis]) for axis in case.along)):
        at = [slice(None)] * x.ndim
        for axis, place in zip(case.along, index, strict=True):
            at[axis] = slice(place, place + 1)
        member = tuple(at)
        parameters = [
            None if each is None else each[member_of(each, at)].reshape(own.normalized_shape)
            for each in (weight, bias)
        ]
        alone = forward_and_backward(ours, own, x[member], dy[member], *parameters)
        for name, result in whole.items():
            expected = alone[name]
            if name in ("dweight", "dbias"):
                part = result[member_of(result, at)].reshape(own.normalized_shape)
            else:
                part = result[member]
            assert_same_bits(part, expected, f"{name} of member {index}")


def member_of(parameter, at):
    """Return where a member's own part of a parameter is: all of an axis of size 1."""
    return tuple(
        slice(None) if size == 1 else place for size, place in zip(parameter.shape, at, strict=True)
    )


@pytest.mark.parametrize("case", BEHIND, ids=lambda case: case.id)
def test_parameters_that_vary_behind_the_normalized_axis_give_the_bits_of_moved_axes(case) -> None:
    x, dy, weight, bias = case.arrays()
    got = forward_and_backward(ours, case, x, dy, weight, bias)
    moved = [None if a is None else dense(np.moveaxis(a, 1, -1)) for a in (x, dy, weight, bias)]
    heads = case.but(layout="heads")  # whose axis is the last
    for name, result in forward_and_backward(ours, heads, *moved).items():
        assert_same_bits(got[name], np.moveaxis(result, -1, 1), name)


@pytest.mark.parametrize("layout", ["heads_of_a_projection", "heads_before_tokens"])
@each_type
@each_kind
def test_strides_between_rows_change_no_bit(kind, dtype, layout) -> None:
    case = Case(kind, dtype, 64, layout=layout, rows=40)
    x, dy, weight, bias = case.arrays()
    assert not x.flags.c_contiguous
    expected = forward_and_backward(ours, case, *map(dense, (x, dy, weight, bias)))
    for name, result in forward_and_backward(ours, case, x, dy, weight, bias).items():
        assert_same_bits(result, expected[name], name)


@each_type
@each_kind
def test_the_inner_place_of_a_row_changes_no_bit(kind, dtype) -> None:
    case = Case(kind, dtype, 33, layout="channels_first_67")
    x, dy, weight, bias = case.arrays()
    whole = forward_and_backward(ours, case, x, dy, weight, bias)
    order = np.random.default_rng(3).permutation(67)
    moved = forward_and_backward(
        ours, case, *(np.ascontiguousarray(a[..., order]) for a in (x, dy)), weight, bias
    )
    # 2 and 66 are still channels first: one inner position alone is the layout of contiguous rows.
    for kept in (slice(0, 2), slice(1, 67)):
        part = forward_and_backward(
            ours, case, *(np.ascontiguousarray(a[..., kept]) for a in (x, dy)), weight, bias
        )
        for name in ROWWISE:
            if name in whole:
                assert_same_bits(part[name], whole[name][..., kept], f"{name} of {kept}")
    for name in ROWWISE:
        if name in whole:
            assert_same_bits(moved[name], whole[name][..., order], f"{name} in another order")


# A NaN that arithmetic makes has a sign, which differs from that of a NaN written as such.
@each_type
@each_kind
def test_a_row_of_an_infinite_dy_gets_the_same_nan_among_others(kind, dtype) -> None:
    case = Case(kind, dtype, 33, layout="channels_first_67")
    x, dy, weight, bias = case.arrays()
    dy[:, 3, ::5], dy[:, 4, ::5] = np.inf, -np.inf
    whole = forward_and_backward(ours, case, x, dy, weight, bias)
    infinite = slice(None, None, 5)
    alone = forward_and_backward(
        ours, case, *(np.ascontiguousarray(a[..., infinite]) for a in (x, dy)), weight, bias
    )
    assert_same_bits(alone["dx"], whole["dx"][..., infinite], "dx")


@pytest.mark.parametrize(("cols", "layout"), [(67, "contiguous"), (16, "channels_first")])
@each_type
@each_kind
def test_pointer_alignment_changes_no_bit(kind, dtype, cols, layout) -> None:
    check_alignment(ours, Case(kind, dtype, cols, values="mixed", layout=layout))


@each_large
@each_type
@each_kind
def test_thread_count_and_repetition_change_no_bit(kind, dtype, large, set_num_threads) -> None:
    check_thread_counts(ours, Case(kind, dtype, **LARGE[large]), set_num_threads, THREADS)


@pytest.mark.parametrize("large", [name for name in LARGE if name != "first_axis"])
@each_kind
def test_a_batch_of_one_gives_the_same_bits_beside_much_work(kind, large) -> None:
    case = Case(kind, **LARGE[large])
    arrays = case.arrays()
    whole = forward_and_backward(ours, case, *arrays)
    for sample in ([0], [case.rows // 2], [case.rows - 1]):
        x, dy, weight, bias = arrays
        alone = forward_and_backward(ours, case, x[sample], dy[sample], weight, bias)
        for name in ROWWISE:
            if name in whole:
                assert_same_bits(alone[name], whole[name][sample], f"{name} of sample {sample}")


@each_type
def test_what_ran_before_changes_no_bit(dtype) -> None:
    case = Case(dtype=dtype, cols=67, values="mixed", rows=2503)
    arrays = case.arrays()
    expected = forward_and_backward(ours, case, *arrays)
    other_work = (
        Case("rms_norm", dtype, cols=4097),
        Case(dtype="float64", cols=3, rows=10_007, values="near_largest"),
        Case(dtype="float32", cols=48, layout="channels_first", parameters=""),
    )
    for other in other_work:
        x, dy, weight, bias = other.arrays()
        forward_and_backward(ours, other, x, dy, weight, bias)
        forward_and_backward(ours, other, np.full_like(x, np.nan), dy, weight, bias)
        for name, result in forward_and_backward(ours, case, *arrays).items():
            assert_same_bits(result, expected[name], f"{name} after {other.id}")
