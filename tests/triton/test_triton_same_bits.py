"""docs/specification.md, "The same bits", kept by the GPU kernels."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from as_numpy_triton import Kernels
from calls import assert_same_bits, forward_and_backward
from cases import KINDS, Case
from checkers import ROWWISE, check_batch_of_one, check_place_of_a_row
from layouts import at_offset, sliced
from values import TYPES

from layernorm.torch.gpu import backward as gpu_backward
from layernorm.torch.gpu import long_rows as gpu_wide

ours = Kernels()

each_kind = pytest.mark.parametrize("kind", KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)


@pytest.mark.parametrize(
    ("dtype", "cols"),
    [("float32", 1), ("float32", 17), ("float32", 769), *((dtype, 64) for dtype in TYPES)],
)
@each_kind
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(kind, dtype, cols) -> None:
    check_batch_of_one(ours, Case(kind, dtype, cols, rows=37, values="mixed"))


@pytest.mark.parametrize(("dtype", "cols"), [("float32", 301), ("bfloat16", 300)])
@each_kind
def test_a_batch_of_one_gives_the_bits_of_its_row_in_chunks(kind, dtype, cols, small_tiles) -> None:
    check_batch_of_one(ours, Case(kind, dtype, cols, rows=3, values="near_largest"))


@pytest.mark.parametrize(
    ("layout", "dtype"), [("channels_first", "float32"), ("channels_first_67", "bfloat16")]
)
@each_kind
def test_a_batch_of_one_gives_the_bits_of_its_sample_in_a_batch(kind, dtype, layout) -> None:
    check_batch_of_one(ours, Case(kind, dtype, 48, layout=layout, rows=3, values="mixed"))


# 20 in one program, 40 in chunks. Mixed: rows that are measured again beside others.
@pytest.mark.parametrize(("kind", "cols"), [*((kind, 20) for kind in KINDS), ("layer_norm", 40)])
def test_the_inner_place_and_the_inner_size_change_no_bit(kind, cols, small_tiles) -> None:
    case = Case(kind, cols=cols, layout="channels_first_67", values="mixed", rows=1)
    x, dy, weight, bias = case.arrays()
    whole = forward_and_backward(ours, case, x, dy, weight, bias)
    part = forward_and_backward(
        *(ours, case, np.ascontiguousarray(x[..., 3:45]), np.ascontiguousarray(dy[..., 3:45])),
        *(weight, bias),
    )
    for name in ROWWISE:
        if name in whole:
            assert_same_bits(part[name], np.ascontiguousarray(whole[name][..., 3:45]), name)


def test_the_strides_of_channels_first_change_no_bit(small_tiles) -> None:
    case = Case("layer_norm", cols=40, layout="middle_axis", values="mixed")
    x, dy, weight, bias = case.arrays()
    expected = forward_and_backward(ours, case, x, dy, weight, bias)
    apart = np.full((6, 43, 7), np.nan, x.dtype)[::2, 1:-2, 2:-1]
    apart[...] = x
    for name, result in forward_and_backward(ours, case, apart, dy, weight, bias).items():
        assert_same_bits(result, expected[name], name)


@each_type
@each_kind
def test_the_place_of_a_row_changes_no_bit(kind, dtype) -> None:
    check_place_of_a_row(ours, Case(kind, dtype, cols=67, rows=37, values="mixed"))


# 64, 304: pieces of 16 bytes, so that a slice must be copied. 67: elements one by one.
@pytest.mark.parametrize("cols", [64, 67, 304])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_alignment_and_slices_change_no_bit(dtype, cols, small_tiles) -> None:
    case = Case("layer_norm", dtype, cols, rows=3)
    arrays = case.arrays()
    expected = forward_and_backward(ours, case, *arrays)
    for lay in (lambda a: at_offset(a, 1), lambda a: at_offset(a, 3), sliced):
        placed = forward_and_backward(ours, case, *map(lay, arrays))
        for name, result in placed.items():
            assert_same_bits(result, expected[name], name)


@each_type
def test_a_repetition_changes_no_bit(dtype) -> None:
    case = Case("layer_norm", dtype, cols=48, rows=203)
    arrays = case.arrays()
    expected = forward_and_backward(ours, case, *arrays)
    for name, result in forward_and_backward(ours, case, *arrays).items():
        assert_same_bits(result, expected[name], name)


def test_the_number_of_multiprocessors_changes_no_bit_of_dx(monkeypatch) -> None:
    case = Case("layer_norm", cols=64, rows=203)
    arrays = case.arrays()
    expected = forward_and_backward(ours, case, *arrays)
    monkeypatch.setattr(gpu_backward, "multiprocessors", lambda device: 1)
    assert_same_bits(forward_and_backward(ours, case, *arrays)["dx"], expected["dx"], "dx")


@pytest.mark.parametrize(("layout", "cols"), [("contiguous", 300), ("middle_axis", 40)])
def test_rows_that_go_together_change_no_bit(layout, cols, monkeypatch, small_tiles) -> None:
    case = Case("layer_norm", cols=cols, layout=layout, rows=3)
    arrays = case.arrays()
    expected = forward_and_backward(ours, case, *arrays)
    monkeypatch.setattr(gpu_wide.plan, "tiles_together", lambda cols, itemsize, chunks: 2)
    for name, result in forward_and_backward(ours, case, *arrays).items():
        assert_same_bits(result, expected[name], name)
