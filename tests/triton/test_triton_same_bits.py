"""docs/specification.md, "The same bits", kept by the GPU kernels."""

from itertools import product

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from as_numpy_triton import Kernels
from calls import assert_same_bits, forward_and_backward
from cases import KINDS, Case
from checkers import ROWWISE, check_batch_of_one, check_place_of_a_row
from layouts import at_offset, sliced
from triton_interpreter import INTERPRETED, every
from values import TYPES

from layernorm.torch.gpu import backward as gpu_backward
from layernorm.triton import launch_config

ours = Kernels()
rows_only = Kernels(parameter_gradients=False)

each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize(
    ("kind", "dtype_and_cols"),
    every(
        3,
        list(
            product(
                KINDS,
                [("float32", 1), ("float32", 17), ("float32", 769), *((t, 64) for t in TYPES)],
            )
        ),
    ),
)
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(kind, dtype_and_cols) -> None:
    check_batch_of_one(ours, Case(kind, *dtype_and_cols, rows=37, values="mixed"))


@pytest.mark.parametrize(
    ("kind", "dtype", "cols"), [("layer_norm", "float32", 301), ("rms_norm", "bfloat16", 300)]
)
def test_a_batch_of_one_gives_the_bits_of_its_long_row_in_a_batch(
    kind, dtype, cols, small_tiles
) -> None:
    check_batch_of_one(rows_only, Case(kind, dtype, cols, rows=3, values="near_largest"))


@pytest.mark.parametrize(
    ("kind", "layout", "dtype"),
    [("layer_norm", "channels_first", "float32"), ("rms_norm", "channels_first_67", "bfloat16")],
)
def test_a_batch_of_one_gives_the_bits_of_its_sample_in_a_batch(kind, layout, dtype) -> None:
    check_batch_of_one(ours, Case(kind, dtype, 48, layout=layout, rows=3, values="mixed"))


# 20 channels fit into one program, 40 are long rows. Mixed: statistics are recomputed for some rows
# of a tile.
@pytest.mark.parametrize(("kind", "cols"), [*((kind, 20) for kind in KINDS), ("layer_norm", 40)])
def test_the_inner_place_and_the_inner_size_change_no_bit(kind, cols, small_tiles) -> None:
    case = Case(kind, cols=cols, layout="channels_first_67", values="mixed", rows=1)
    x, dy, weight, bias = case.arrays()
    whole = forward_and_backward(rows_only, case, x, dy, weight, bias)
    part = forward_and_backward(
        *(rows_only, case, np.ascontiguousarray(x[..., 3:25]), np.ascontiguousarray(dy[..., 3:25])),
        *(weight, bias),
    )
    for name in ROWWISE:
        if name in whole:
            assert_same_bits(part[name], np.ascontiguousarray(whole[name][..., 3:25]), name)


def test_the_strides_of_channels_first_change_no_bit(small_tiles) -> None:
    case = Case("layer_norm", cols=40, layout="middle_axis", values="mixed")
    x, dy, weight, bias = case.arrays()
    expected = forward_and_backward(ours, case, x, dy, weight, bias)
    apart = np.full((6, 43, 7), np.nan, x.dtype)[::2, 1:-2, 2:-1]
    apart[...] = x
    for name, result in forward_and_backward(ours, case, apart, dy, weight, bias).items():
        assert_same_bits(result, expected[name], name)


@pytest.mark.parametrize(("kind", "dtype"), every(3, list(product(KINDS, TYPES))))
def test_the_place_of_a_row_changes_no_bit(kind, dtype) -> None:
    check_place_of_a_row(ours, Case(kind, dtype, cols=67, rows=37, values="mixed"))


# 64, 304: rows are read 16 bytes at a time, so a slice must be copied. 67: element by element.
@pytest.mark.parametrize("cols", [64, 67, 304])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_alignment_and_slices_change_no_bit(dtype, cols, small_tiles) -> None:
    case = Case("layer_norm", dtype, cols, rows=2)
    arrays = case.arrays()
    expected = forward_and_backward(ours, case, *arrays)
    for lay in every(2, (lambda a: at_offset(a, 1), lambda a: at_offset(a, 3), sliced)):
        placed = forward_and_backward(ours, case, *map(lay, arrays))
        for name, result in placed.items():
            assert_same_bits(result, expected[name], name)


@pytest.mark.parametrize("dtype", every(3, TYPES))
def test_a_repetition_changes_no_bit(dtype) -> None:
    case = Case("layer_norm", dtype, cols=48, rows=37 if INTERPRETED else 203)
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
def test_the_size_of_a_group_of_long_rows_changes_no_bit(
    layout, cols, monkeypatch, small_tiles
) -> None:
    case = Case("layer_norm", cols=cols, layout=layout, rows=3)
    arrays = case.arrays()
    expected = forward_and_backward(ours, case, *arrays)
    monkeypatch.setattr(launch_config, "tiles_in_group", lambda *_: 2)
    for name, result in forward_and_backward(ours, case, *arrays).items():
        assert_same_bits(result, expected[name], name)
