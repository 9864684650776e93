"""What `layernorm.numpy`'s functions return: types, shapes, statistics and gradients."""

import ml_dtypes
import numpy as np
import pytest
from problems import a_problem, assert_close

import layernorm
from layernorm import _native, reference, spec
from layernorm import numpy as front
from layernorm.numpy import Stats
from layernorm.numpy.backward import backward
from layernorm.numpy.forward import forward_with_statistics

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


class Reversed(tuple):
    """A tuple that iterates in another way than its items lie in memory."""

    def __iter__(self):
        return reversed(tuple(self[at] for at in range(len(self))))


class Misleading(tuple):
    """A tuple that tells another length and other items than it iterates over."""

    def __len__(self):
        return 1

    def __getitem__(self, at):
        return 0


class Index:
    """An object with `__index__` that is no int: Python code, which the fast path does not run."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


LAST_AXES = [-1, 2, np.int64(2), np.uint8(2), (-1,), [2], (np.int8(-1),)]
LAST_TWO_AXES = [(-2, -1), (1, 2), [-1, 1], (np.int16(2), -2), Misleading((1, 2))]
ALL_AXES = [(0, 1, 2), [-1, 0, -2]]
OTHER_AXES = [0, 1, -3, 3, 2**70, (0, 2), (2, 2), (1, -1, -2), (), (0, 1, 2, 3), True, (True,)]
OTHER_AXES += ["2", None, 2.0, (2.0,), np.array(2), np.array([2]), iter((2,)), range(2, 3)]
OTHER_AXES += [Index(-1), (Index(2),), Reversed((1, 2, 0))]
OTHER_AXES += [np.timedelta64(2, "s"), (np.timedelta64(2, "s"),)]


@pytest.mark.parametrize("axis", LAST_AXES + LAST_TWO_AXES + ALL_AXES)
@pytest.mark.parametrize("centered", [True, False], ids=["layer", "rms"])
def test_the_fast_path_serves_the_last_axes(axis, centered):
    axes = spec.normalize_axes(axis, 3)
    x, weight, bias, dy = a_problem((4, 6, 13), axes)
    bias = bias if centered else None
    call = (axis, 1e-5, None, centered, False)
    y, general_fields = forward_with_statistics(x, weight, bias, *call)
    stats = Stats(*general_fields)
    fast_y, fields = _native.try_forward_with_statistics(x, weight, bias, *call)
    fast = Stats(*fields)
    assert _native.try_forward(x, weight, bias, *call).tobytes() == y.tobytes() == fast_y.tobytes()
    assert (fast.axis, fast.eps, fast.parameter_type) == (axes, 1e-5, x.dtype)
    for name in ("mean", "rstd", "residual"):
        mine, theirs = getattr(fast, name), getattr(stats, name)
        assert (mine is None) == (theirs is None), name
        assert mine is None or (mine.shape, mine.dtype, mine.tobytes()) == (
            theirs.shape,
            theirs.dtype,
            theirs.tobytes(),
        ), name
    call = (True, None, centered, centered, False)  # need_dx, need_dweight, need_dbias
    expected = backward(dy, x, stats, weight, *call)
    rows = (fast.mean, fast.rstd, fast.residual, weight, fast.axis, fast.eps, fast.parameter_type)
    got = _native.try_backward(dy, x, *rows, *call)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine is theirs is None or mine.tobytes() == theirs.tobytes()
        assert mine is None or mine.shape == theirs.shape


@pytest.mark.parametrize("axis", OTHER_AXES)
def test_the_fast_path_leaves_other_axes_to_the_general_one(axis):
    x, *_ = a_problem((4, 6, 13))
    for each in (_native.try_forward, _native.try_forward_with_statistics):
        assert each(x, None, None, axis, 1e-5, None, True, False) is None


@pytest.mark.parametrize("axes", [(-1,), (1, 0), (0,), (0, 1, 2), (0, 2), (), [1], None])
def test_the_fast_backward_takes_the_axes_of_stats_alone(axes):
    x, weight, _, dy = a_problem((4, 6))
    _, (mean, rstd, residual, last, eps, parameter_type) = _native.try_forward_with_statistics(
        x, weight, None, -1, 1e-5, None, True, False
    )
    for given, served in ((last, True), (axes, False)):
        result = _native.try_backward(
            dy,
            x,
            mean,
            rstd,
            residual,
            weight,
            given,
            eps,
            parameter_type,
            True,
            None,
            True,
            True,
            False,
        )
        assert (result is not None) == served


@pytest.mark.parametrize("eps", [0, 1, 1.5, np.float16(0.25), np.float32(1e-5), np.float64(1e-6)])
def test_the_fast_path_takes_any_number_as_eps(eps):
    x, *_ = a_problem()
    y, fields = _native.try_forward_with_statistics(x, None, None, -1, eps, None, True, False)
    assert type(Stats(*fields).eps) is float
    assert Stats(*fields).eps == float(eps)
    np.testing.assert_array_equal(y, front.layer_norm(x, eps=float(eps)))


@pytest.mark.parametrize("eps", [True, -1, -1e-9, np.nan, np.inf, np.float32("inf"), 10**400, "1"])
def test_the_fast_path_leaves_another_eps_to_the_general_one(eps):
    x, *_ = a_problem()
    assert _native.try_forward(x, None, None, -1, eps, None, True, False) is None


def test_array_likes():
    x = [[1.0, 2.0, 4.0], [3.0, 3.0, 9.0]]
    y = front.layer_norm(x, [1.0, 2.0, 3.0], (0.0, 1.0, 2.0))
    assert_close(y, reference.layer_norm(np.array(x), np.array([1.0, 2, 3]), np.array([0.0, 1, 2])))
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(layernorm.layer_norm(x), front.layer_norm(x))


def test_subclasses_give_base_class_arrays(tmp_path):
    x, *_ = a_problem()
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", x.dtype, "r+", shape=x.shape)
    y = layernorm.layer_norm(mapped)
    assert type(y) is np.ndarray
    assert_close(y, reference.layer_norm(x))
    assert front.layer_norm(mapped, out=mapped) is mapped
    np.testing.assert_array_equal(mapped, y)
