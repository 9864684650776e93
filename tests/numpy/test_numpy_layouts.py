"""`layernorm.numpy` with inputs and `out` of any strides."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from layouts import byte_swapped, read_only, sliced, strided, transposed, unaligned
from problems import RNG, a_problem, assert_close

from layernorm import _native, reference
from layernorm import numpy as front
from layernorm.numpy import blocks


def every_third(x):
    return strided(*[1] * (x.ndim - 1), 3)(x)


def reversed_along(axis):
    def lay(x):
        return strided(*[-1 if each == axis % x.ndim else 1 for each in range(x.ndim)])(x)

    return lay


def ends_swapped(x):
    order = list(range(x.ndim))
    order[0], order[-1] = order[-1], order[0]
    return transposed(*order)(x.copy())


MEMORY = {
    "contiguous": np.copy,
    "fortran": lambda x: np.copy(x, order="F"),
    "reversed": reversed_along(-1),
    "upside_down": reversed_along(0),
    "sliced": sliced,
    "every_third": every_third,
    "byte_swapped": byte_swapped,
    "unaligned": unaligned,
    "read_only": read_only,
    "ends_swapped": ends_swapped,
}

LAYOUTS = {
    "rows": ((6, 13), -1),
    "one_row": ((13,), 0),
    "two_trailing": ((3, 4, 5), (-2, -1)),
    "channels_first": ((2, 7, 3, 5), 1),
    "leading": ((7, 20), 0),
    "channels_first_cut_on_two_axes": ((2, 7, 4, 20), 1),  # if blocks are small
    "apart": ((2, 3, 4, 5), (1, 3)),
    "apart_from_the_first": ((2, 3, 4, 5), (0, 2)),
    "outer_and_inner": ((3, 4, 5), (0, 2)),
    "everything": ((3, 4), (0, 1)),
    "single_col": ((5, 1), 1),
}


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory", MEMORY)
def test_any_strides_give_the_right_answer_and_leave_the_inputs(
    memory, layout, small_blocks, monkeypatch
):
    if small_blocks:  # a few rows each, so that rows lie on both sides of a block's edge
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 200)
    shape, axis = LAYOUTS[layout]
    dense = a_problem(shape, axis)
    x, weight, bias, dy = (MEMORY[memory](each) for each in dense)
    options = {"axis": axis}

    y, stats = front.layer_norm_forward(x, weight, bias, **options)
    assert_close(y, reference.layer_norm(*dense[:3], **options))
    np.testing.assert_array_equal(y, front.layer_norm(x, weight, bias, **options))
    assert_close((dense[0] - stats.mean) * stats.rstd, reference.layer_norm(dense[0], **options))
    gradients = front.layer_norm_backward(dy, x, stats, weight)
    expected = reference.layer_norm_backward(dense[3], *dense[:2], **options)
    for got, right in zip(gradients, expected, strict=True):
        assert_close(got, right)

    y, stats = front.rms_norm_forward(x, weight, **options)
    assert_close(y, reference.rms_norm(*dense[:2], **options))
    rstd = reference_rstd(dense[0], axis)
    assert_close(stats.rstd * np.ones(shape), rstd)
    gradients = front.rms_norm_backward(dy, x, stats, weight)
    expected = reference.rms_norm_backward(dense[3], *dense[:2], **options)
    scale = float((np.abs(rstd).max() * np.abs(dense[3]).max()) * np.abs(dense[1]).max())
    for got, right in zip(
        gradients, expected, strict=True
    ):  # of one column, nearly nothing is left
        assert_close(got, right, scale=scale)

    for given, original in zip((x, weight, bias, dy), dense, strict=True):
        np.testing.assert_array_equal(given, original)


def reference_rstd(x, axis):
    square = np.mean(x**2, axis=axis, keepdims=True)
    return 1 / np.sqrt(square + 1e-6) * np.ones_like(x)


@pytest.mark.parametrize("layout", ["rows", "channels_first", "apart"])
@pytest.mark.parametrize("kept", [0, -1])
def test_broadcast_inputs(layout, kept):
    shape, axis = LAYOUTS[layout]
    single = list(shape)
    single[kept] = 1
    x, weight, bias, _ = a_problem(shape, axis)
    x = np.broadcast_to(RNG.normal(size=single), shape)
    dy = np.broadcast_to(RNG.normal(size=single), shape)
    y, stats = front.layer_norm_forward(x, weight, bias, axis=axis)
    assert_close(y, reference.layer_norm(x.copy(), weight, bias, axis=axis))
    gradients = front.layer_norm_backward(dy, x, stats, weight)
    expected = reference.layer_norm_backward(dy.copy(), x.copy(), weight, axis=axis)
    for got, right in zip(gradients, expected, strict=True):
        assert_close(got, right)


def test_a_scalar_parameter_is_broadcast_by_the_caller():
    x, *_ = a_problem()
    weight = np.broadcast_to(np.float64(2.0), 13)
    assert_close(front.layer_norm(x, weight), 2.0 * reference.layer_norm(x))


@pytest.mark.parametrize("memory", [m for m in MEMORY if m != "read_only"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_is_written_through_any_strides_and_returned(memory, layout):
    shape, axis = LAYOUTS[layout]
    x, weight, bias, _ = a_problem(shape, axis)
    out = MEMORY[memory](np.full(shape, np.nan))
    assert front.layer_norm(x, weight, bias, axis=axis, out=out) is out
    assert_close(out, reference.layer_norm(x, weight, bias, axis=axis))
    assert front.rms_norm(x, weight, axis=axis, out=out) is out
    assert_close(out, reference.rms_norm(x, weight, axis=axis))


def test_out_inside_a_larger_array_leaves_what_surrounds_it():
    x, weight, bias, _ = a_problem()
    whole = np.full((10, 20), 7.0)
    front.layer_norm(x, weight, bias, out=whole[2:8, 3:16])
    assert_close(whole[2:8, 3:16], reference.layer_norm(x, weight, bias))
    whole[2:8, 3:16] = 7.0
    assert (whole == 7.0).all()


@pytest.mark.parametrize("memory", [m for m in MEMORY if m != "read_only"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_may_be_x_itself(memory, layout):
    shape, axis = LAYOUTS[layout]
    dense, weight, bias, _ = a_problem(shape, axis)
    expected = reference.layer_norm(dense, weight, bias, axis=axis)
    x = MEMORY[memory](dense)
    assert front.layer_norm(x, weight, bias, axis=axis, out=x) is x
    assert_close(x, expected)
    x = MEMORY[memory](dense)
    front.layer_norm(x, weight, bias, axis=axis, out=x[...])  # another object, the same memory
    assert_close(x, expected)


def test_an_out_beside_x_in_one_buffer_is_no_overlap():
    whole = RNG.normal(size=(6, 26))
    left = whole[:, :13].copy()
    front.layer_norm(whole[:, :13], out=whole[:, 13:])
    assert_close(whole[:, 13:], reference.layer_norm(left))
    np.testing.assert_array_equal(whole[:, :13], left)


def test_a_layout_that_collapses_is_not_copied(monkeypatch):
    """The kernel reads channels first and row slices in place."""

    def no_copy(*_):
        raise AssertionError("copied in blocks")

    monkeypatch.setattr(sys.modules["layernorm.numpy.forward"], "Blocks", no_copy)
    channels_first = np.zeros((2, 7, 3, 5), np.float32)
    front.layer_norm(channels_first, axis=1)
    front.layer_norm(np.zeros((6, 20), np.float32)[:, :13])
    front.layer_norm(np.zeros((4, 7, 5), np.float32)[::2], axis=1)
    with pytest.raises(AssertionError, match="copied in blocks"):
        front.layer_norm(channels_first, axis=(1, 3))


@pytest.mark.parametrize("memory", [unaligned, byte_swapped])
def test_what_the_kernels_cannot_read_does_not_reach_them(memory, monkeypatch):
    calls: list[bool] = []

    def aligned_and_native(name):
        kernel = getattr(_native, name)

        def checked(*arguments):
            done = kernel(*arguments)
            for each in arguments:
                if done and isinstance(each, np.ndarray):
                    assert each.flags.aligned
                    assert each.dtype.isnative
            calls.append(done)
            return done

        return SimpleNamespace(**{name: checked, "empty": _native.empty})

    for name in ("forward", "backward"):
        module = sys.modules[f"layernorm.numpy.{name}"]
        monkeypatch.setattr(module, "_native", aligned_and_native(name))
    x, weight, bias, dy = (memory(each) for each in a_problem())
    _, stats = front.layer_norm_forward(x, weight, bias, out=memory(np.zeros(x.shape)))
    stats.mean, stats.rstd, stats.residual = map(memory, (stats.mean, stats.rstd, stats.residual))
    front.layer_norm_backward(dy, x, stats, weight)
    assert True in calls
    assert False in calls


def test_blocks_cover_every_row_once_and_stay_small():
    for shape, axes in [((7, 300, 5), (1,)), ((9, 11, 13), (2,)), ((64, 33), (0,)), ((5,), (0,))]:
        cut = blocks.Blocks(shape, axes, itemsize=blocks.BLOCK_BYTES // 256)
        covered = np.zeros(shape, int)
        for block in cut:
            covered[block] += 1
            assert covered[block].size <= cut.largest
            if shape[-1] > 1 and axes[-1] < len(shape) - 1:  # rows side by side stay together
                assert covered[block].shape[-1] > 1
        assert (covered == 1).all()
        cols = int(np.prod([shape[axis] for axis in axes]))
        assert cut.largest <= max(256, 16 * cols)
