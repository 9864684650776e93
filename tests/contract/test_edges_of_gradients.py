"""Edges of the backward: NaN and infinity in dy, constant rows with eps 0."""

import numpy as np
import pytest

from layernorm.numpy import layer_norm_backward, layer_norm_forward, rms_norm, rms_norm_forward

TYPES = [np.float16, np.float32, np.float64]


def problem(rows, cols, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x, dy = (rng.normal(1, 2, (rows, cols)).astype(dtype) for _ in range(2))
    weight = rng.normal(1, 0.5, cols).astype(dtype)
    return x, dy, weight


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [-1, 0])  # rows, and columns
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_dy_spoils_its_row_and_its_column_and_no_other(dtype, axis, value):
    x, dy, weight = problem(21, 70, dtype)
    dy[5, 33] = value
    if axis == 0:
        x, dy = np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T)
    _, stats = layer_norm_forward(x, weight, weight, axis=axis)
    dx, dweight, dbias = layer_norm_backward(dy, x, stats, weight)
    dx = dx if axis == -1 else dx.T
    assert np.isnan(dx[5]).all()
    assert np.isfinite(np.delete(dx, 5, axis=0)).all()
    assert not np.isfinite(dweight[33])
    np.testing.assert_array_equal(dbias[33], dtype(value))
    assert np.isfinite(np.delete(dweight, 33)).all()
    assert np.isfinite(np.delete(dbias, 33)).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("axis", [-1, 0])
def test_a_constant_row_with_eps_0_has_rstd_0_y_bias_and_dx_0(dtype, axis):
    x, dy, weight = problem(5, 19, dtype)
    x[2] = dtype(0.1)
    bias = np.arange(19).astype(dtype)
    if axis == 0:
        x, dy = np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T)
    y, stats = layer_norm_forward(x, weight, bias, axis=axis, eps=0.0)
    dx, dweight, _ = layer_norm_backward(dy, x, stats, weight)
    y, dx = (y, dx) if axis == -1 else (y.T, dx.T)
    np.testing.assert_array_equal(y[2], bias)
    assert stats.rstd.ravel()[2] == 0
    assert stats.mean.ravel()[2] == dtype(0.1)
    np.testing.assert_array_equal(dx[2], 0)
    assert np.isfinite(dweight).all()
    assert (np.delete(stats.rstd.ravel(), 2) > 0).all()


def test_rms_norm_of_zeros_with_eps_0_is_zero():
    zeros = np.zeros((3, 8), np.float32)
    np.testing.assert_array_equal(rms_norm(zeros, eps=0.0), 0)
    assert (rms_norm_forward(zeros, eps=0.0)[1].rstd == 0).all()
