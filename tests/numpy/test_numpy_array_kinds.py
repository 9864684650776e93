"""Arrays that are not plain ndarrays: a plain ndarray comes back, with the plain array's bits."""

import array

import numpy as np
import pytest
from problems import a_problem

import layernorm
import layernorm.numpy as front

X, WEIGHT, BIAS, DY = a_problem(dtype=np.float32)


class Labeled(np.ndarray):
    """A subclass that carries a label, as NumPy's guide writes one."""

    label = None

    def __array_finalize__(self, other):
        self.label = getattr(other, "label", None)


class NoUfuncs(np.ndarray):
    __array_ufunc__ = None


class ByArray:
    def __init__(self, of):
        self._of = of

    def __array__(self, dtype=None, copy=None):
        return self._of if dtype is None else self._of.astype(dtype)


class ByArrayWithoutKeywords(ByArray):
    def __array__(self):
        return self._of


class ByArrayWithType(ByArray):
    def __array__(self, dtype=None):
        return self._of


class ByInterface:
    def __init__(self, of):
        self._of = of
        self.__array_interface__ = of.__array_interface__


class ByDlpack:
    def __init__(self, of):
        self._of = of

    def __dlpack__(self, **options):
        return self._of.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._of.__dlpack_device__()


class Frame(ByArray):
    """As pandas: an object with a shape, columns, and operators that give frames."""

    def __init__(self, of):
        super().__init__(of)
        self.shape, self.columns = of.shape, list("abcdefghijklm")

    def __sub__(self, other):
        return Frame(self._of - np.asarray(other))


KINDS = {
    "subclass": lambda a: a.view(Labeled),
    "subclass without ufuncs": lambda a: a.view(NoUfuncs),
    "record array": lambda a: a.view(np.recarray),
    "__array__": ByArray,
    "__array__ without keywords": ByArrayWithoutKeywords,
    "__array__ with dtype": ByArrayWithType,
    "__array_interface__": ByInterface,
    "DLPack": ByDlpack,
    "frame": Frame,
    "memoryview": memoryview,
    "list of arrays": list,
    "tuple of scalars": lambda a: tuple(a) if a.ndim == 1 else tuple(map(tuple, a)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_plain_arrays_with_the_plain_arrays_bits(kind):
    as_kind = KINDS[kind]
    x, weight, bias, dy = map(as_kind, (X, WEIGHT, BIAS, DY))
    y, stats = front.layer_norm_forward(x, weight, bias)
    expected, plain_stats = front.layer_norm_forward(X, WEIGHT, BIAS)
    got = [front.layer_norm(x, weight, bias), y, stats.mean, stats.rstd]
    got += front.layer_norm_backward(dy, x, stats, weight)
    right = [expected, expected, plain_stats.mean, plain_stats.rstd]
    right += front.layer_norm_backward(DY, X, plain_stats, WEIGHT)
    got.append(front.rms_norm(x, weight))
    right.append(front.rms_norm(X, WEIGHT))
    layer = front.LayerNorm(13)
    got += [layer(x), layer.backward(dy)]
    right += [layer(X), layer.backward(DY)]
    for a, b in zip(got, right, strict=True):
        assert type(a) is np.ndarray
        np.testing.assert_array_equal(a, b)


def test_a_matrix_gives_a_plain_array():
    with pytest.warns(PendingDeprecationWarning):
        x = np.matrix(X)
    assert type(front.layer_norm(x)) is np.ndarray
    np.testing.assert_array_equal(front.layer_norm(x), front.layer_norm(X))


def test_python_floats_are_float64():
    y = front.layer_norm(X.tolist())
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, front.layer_norm(X.astype(np.float64)))
    y = front.layer_norm(array.array("f", [1, 2, 4]))
    np.testing.assert_array_equal(y, front.layer_norm(np.float32([1, 2, 4])))


@pytest.mark.parametrize("kind", ["subclass", "record array"])
def test_out_keeps_its_class_and_what_it_carries(kind):
    out = np.full_like(X, 7).view(Labeled)
    out.label = "mine"
    assert front.layer_norm(KINDS[kind](X), WEIGHT, BIAS, out=out) is out
    assert out.label == "mine"
    np.testing.assert_array_equal(out.view(np.ndarray), front.layer_norm(X, WEIGHT, BIAS))


def test_maps_of_files(tmp_path):
    X.tofile(tmp_path / "x")
    options = {"dtype": X.dtype, "shape": X.shape}
    expected = front.layer_norm(X)
    read = np.memmap(tmp_path / "x", mode="r", **options)
    y = front.layer_norm(read)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, expected)
    with pytest.raises(ValueError, match="out is read-only"):
        front.layer_norm(read, out=read)
    written = np.memmap(tmp_path / "x", mode="r+", **options)
    with pytest.raises(ValueError, match="out overlaps x"):
        front.layer_norm(written[:-1], out=written[1:])
    assert front.layer_norm(written, out=written) is written
    written.flush()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "x", X.dtype).reshape(X.shape), expected)


def test_without_axes():
    for x in (1.0, np.float32(1), np.array(1.0)):
        with pytest.raises(ValueError, match=r"no axes \(shape \(\)\).*reshape x"):
            front.layer_norm(x)


def test_the_top_level_takes_what_is_numpys_or_a_list():
    for x in (X.view(Labeled), X.tolist(), tuple(X[0].tolist()), np.asarray(Frame(X))):
        np.testing.assert_array_equal(layernorm.layer_norm(x), front.layer_norm(x))
    for x in (Frame(X), ByDlpack(X), range(3), None):
        with pytest.raises(TypeError, match=r"x is of type .*np\.asarray\(x, np\.float32\)"):
            layernorm.layer_norm(x)
