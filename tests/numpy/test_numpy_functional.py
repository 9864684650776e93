"""What `layernorm.numpy`'s functions return: types, shapes, statistics and gradients."""

import ml_dtypes
import numpy as np
import pytest
from problems import a_problem, assert_close

import layernorm
from layernorm import numpy as front
from layernorm import reference

TYPES = [
    np.dtype(np.float16),
    np.dtype(ml_dtypes.bfloat16),
    np.dtype(np.float32),
    np.dtype(np.float64),
]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types_of_results(dtype):
    statistics_type = np.float64 if dtype == np.float64 else np.float32
    for parameter_type in {dtype, np.dtype(np.float32)} if dtype.itemsize == 2 else {dtype}:
        x, _, _, dy = a_problem(dtype=dtype)
        _, weight, bias, _ = a_problem(dtype=parameter_type)
        y, stats = front.layer_norm_forward(x, weight, bias)
        dx, dweight, dbias = front.layer_norm_backward(dy, x, stats, weight)
        assert y.dtype == dx.dtype == dtype
        assert dweight.dtype == dbias.dtype == parameter_type
        assert stats.mean.dtype == stats.rstd.dtype == stats.residual.dtype == statistics_type
        _, stats = front.layer_norm_forward(x, None, bias)
        assert front.layer_norm_backward(dy, x, stats)[2].dtype == parameter_type
        assert_close(y, reference.layer_norm(x, weight, bias), dtype)


def test_a_byte_swapped_x_gives_a_native_y():
    x, weight, _, dy = a_problem()
    swapped = x.astype(x.dtype.newbyteorder())
    y, stats = front.layer_norm_forward(swapped, weight.astype(swapped.dtype))
    dx, dweight, _ = front.layer_norm_backward(dy, swapped, stats, weight.astype(swapped.dtype))
    assert all(each.dtype.isnative for each in (y, stats.mean, dx, dweight))


def test_statistics_have_the_shape_that_broadcasts():
    x, *_ = a_problem((2, 3, 4, 5))
    _, stats = front.layer_norm_forward(x, axis=(3, -3), eps=0.25)
    assert stats.mean.shape == stats.rstd.shape == stats.residual.shape == (2, 1, 4, 1)
    assert stats.axis == (1, 3)
    assert stats.eps == 0.25
    assert stats.parameter_type is None
    assert_close((x - stats.mean) * stats.rstd, reference.layer_norm(x, axis=(1, 3), eps=0.25))
    _, stats = front.rms_norm_forward(x)
    assert stats.mean is None
    assert stats.residual is None


def test_what_is_not_needed_is_none():
    x, weight, bias, dy = a_problem()
    _, stats = front.layer_norm_forward(x, weight, bias)
    everything = front.layer_norm_backward(dy, x, stats, weight)
    for wanted in np.ndindex(2, 2, 2):
        options = dict(zip(("need_dx", "need_dweight", "need_dbias"), wanted, strict=True))
        some = front.layer_norm_backward(dy, x, stats, weight, **options)
        for got, right, want in zip(some, everything, wanted, strict=True):
            assert (got is not None) == bool(want)
            if want:
                np.testing.assert_array_equal(got, right)
    assert front.layer_norm_backward(dy, x, stats)[1] is None
    ones = front.layer_norm_backward(dy, x, stats, need_dweight=True)[1]
    assert_close(ones, reference.layer_norm_backward(dy, x, np.ones(13))[1])
    _, stats = front.rms_norm_forward(x, weight)
    assert front.rms_norm_backward(dy, x, stats, weight, need_dx=False)[0] is None
    assert front.rms_norm_backward(dy, x, stats, weight, need_dweight=False)[1] is None


@pytest.mark.parametrize(("shape", "axis"), [((6, 13), 1), ((2, 7, 3, 5), 1), ((2, 3, 4), (0, 2))])
def test_a_backward_without_the_residual_works_it_out(shape, axis):
    x, weight, _, dy = a_problem(shape, axis)
    _, stats = front.layer_norm_forward(x, weight, axis=axis)
    with_it = front.layer_norm_backward(dy, x, stats, weight)
    stats.residual = None
    for got, right in zip(front.layer_norm_backward(dy, x, stats, weight), with_it, strict=True):
        assert_close(got, right)


def test_a_zero_centered_weight_stands_for_one_more():
    x, weight, bias, dy = a_problem()
    zero = {"zero_centered_weight": True}
    y, stats = front.layer_norm_forward(x, weight - 1, bias, **zero)
    assert_close(y, reference.layer_norm(x, weight, bias))
    dx, dweight, _ = front.layer_norm_backward(dy, x, stats, weight - 1, **zero)
    expected = reference.layer_norm_backward(dy, x, weight)
    assert_close(dx, expected[0])
    assert_close(dweight, expected[1])
    assert_close(front.rms_norm(x, weight - 1, **zero), reference.rms_norm(x, weight))
    assert_close(front.layer_norm(x, None, bias, **zero), reference.layer_norm(x, None, bias))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (2, 0, 3)])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_empty_arrays(shape, dtype):
    x = np.empty(shape, dtype)
    weight, bias = np.ones(shape[-1:], dtype), np.ones(shape[-1:], dtype)
    y, stats = front.layer_norm_forward(x, weight, bias)
    assert y.shape == front.layer_norm(x, weight, bias).shape == front.rms_norm(x).shape == shape
    assert stats.mean.shape == (*shape[:-1], 1)
    dx, dweight, dbias = front.layer_norm_backward(x, x, stats, weight)
    assert dx.shape == shape
    for gradient in (dweight, dbias):
        assert gradient.dtype == dtype
        np.testing.assert_array_equal(gradient, np.zeros(shape[-1:], dtype))
    out = np.empty(shape, dtype)
    assert front.layer_norm(x, weight, bias, out=out) is out


def test_array_likes():
    x = [[1.0, 2.0, 4.0], [3.0, 3.0, 9.0]]
    y = front.layer_norm(x, [1.0, 2.0, 3.0], (0.0, 1.0, 2.0))
    assert_close(y, reference.layer_norm(np.array(x), np.array([1.0, 2, 3]), np.array([0.0, 1, 2])))
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(layernorm.layer_norm(x), front.layer_norm(x))


def test_subclasses_give_plain_arrays(tmp_path):
    x, *_ = a_problem()
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", x.dtype, "r+", shape=x.shape)
    y = layernorm.layer_norm(mapped)
    assert type(y) is np.ndarray
    assert_close(y, reference.layer_norm(x))
    assert front.layer_norm(mapped, out=mapped) is mapped
    np.testing.assert_array_equal(mapped, y)
