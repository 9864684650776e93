"""Wrong versions of our functions, which `check` and `bench` must find."""

import numpy as np

import layernorm
from layernorm import numpy as front_end


def off_by_eight_ulp(*arguments, **options):
    y = front_end.layer_norm(*arguments, **options)
    return (y.astype(np.float64) * (1 + 8 * 2.0**-23)).astype(y.dtype)


def uncentered_variance(x, weight, bias, *, axis, eps, out):
    given = x.dtype
    x = np.asarray(x, np.float32)
    mean = x.mean(axis, keepdims=True)
    var = (x * x).mean(axis, keepdims=True) - mean * mean
    shape = [1] * x.ndim
    shape[axis] = -1
    weight, bias = (np.asarray(each, np.float32).reshape(shape) for each in (weight, bias))
    with np.errstate(all="ignore"):
        return ((x - mean) / np.sqrt(var + eps) * weight + bias).astype(given)


def swallows_nan(x, *arguments, **options):
    return front_end.layer_norm(np.nan_to_num(x), *arguments, **options)


def depends_on_the_batch(x, *arguments, **options):
    y = front_end.layer_norm(x, *arguments, **options)
    return y if len(x) > 1 else np.nextafter(y, y.dtype.type(0)) if y.itemsize > 2 else y


def depends_on_threads(dy, x, stats, weight):
    dx, dweight, dbias = front_end.layer_norm_backward(dy, x, stats, weight)
    if layernorm.get_num_threads() == 3 and dweight.itemsize > 2:
        dweight = np.nextafter(dweight, dweight.dtype.type(0))
    return dx, dweight, dbias


def mean_instead_of_sum(dy, x, stats, weight):
    dx, dweight, dbias = front_end.layer_norm_backward(dy, x, stats, weight)
    return dx, dweight, dbias / dbias.dtype.type(len(x))
