"""JAX's settings change no result, and what Flax and Equinox can do under them, ours can."""

import functools
import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax")
equinox = pytest.importorskip("equinox")
pytest.importorskip("flax", minversion="0.12")

import jax.numpy as jnp  # noqa: E402
from calls import assert_same_bits  # noqa: E402
from jax_renamed import enable_x64  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import flax.linen
    import flax.nnx

import layernorm.equinox  # noqa: E402
import layernorm.flax.linen  # noqa: E402
import layernorm.flax.nnx  # noqa: E402
import layernorm.jax as ours  # noqa: E402

SETTINGS = {
    "strict types": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "debug NaN": lambda: jax.debug_nans(True),
    "debug infinity": lambda: jax.debug_infs(True),
    "no jit": jax.disable_jit,
    "leaks": jax.checking_leaks,
    "x64": lambda: enable_x64(True),
    "transfers": lambda: jax.transfer_guard("disallow"),
    "device": lambda: jax.default_device(jax.devices()[0]),
    "legacy keys": lambda: jax.legacy_prng_key("error"),
    "custom keys": lambda: jax.enable_custom_prng(True),
    "key reuse": lambda: jax.debug_key_reuse(True),
    "generator": lambda: jax.default_prng_impl("rbg"),
    "products": lambda: jax.default_matmul_precision("highest"),
}


def arrays_of(x_type: str, parameter_type: str) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(3)
    x, dy = (jnp.asarray(rng.normal(1, 2, (3, 8)), x_type) for _ in range(2))
    weight, bias = (jnp.asarray(rng.normal(1, 2, 8), parameter_type) for _ in range(2))
    return x, weight, bias, dy


def as_equinox(module, name):
    def call(x, *parameters):
        layer = getattr(module, name)(8, dtype=parameters[0].dtype)
        layer = equinox.tree_at(lambda each: (each.weight, each.bias), layer, parameters)
        return jax.vmap(layer)(x)

    return call


def named(parameters, name):
    count = 2 if name == "LayerNorm" else 1
    return dict(zip(("scale", "bias")[:count], parameters[:count], strict=True))


def as_linen(module, name):
    def call(x, *parameters):
        layer = getattr(module, name)(param_dtype=parameters[0].dtype)
        return layer.apply({"params": named(parameters, name)}, x)

    return call


def as_nnx(module, name):
    def call(x, *parameters):
        layer = getattr(module, name)(8, param_dtype=parameters[0].dtype, rngs=flax.nnx.Rngs(0))
        for each, value in named(parameters, name).items():
            setattr(layer, each, flax.nnx.Param(value))
        return layer(x)

    return call


FUNCTIONS = {
    "layer_norm": lambda x, w, b: ours.layer_norm(x.T, w, b, axis=0).T,
    "rms_norm": lambda x, w, b: ours.rms_norm(x, w, zero_centered_weight=True),
}
MODULES = {
    f"{place} {name}": [make(theirs, name), make(mine, name)]
    for place, make, theirs, mine in (
        ("equinox", as_equinox, equinox.nn, layernorm.equinox),
        ("linen", as_linen, flax.linen, layernorm.flax.linen),
        ("nnx", as_nnx, flax.nnx, layernorm.flax.nnx),
    )
    for name in ("LayerNorm", "RMSNorm")
}


def results(function, x, weight, bias, dy, *, order: int = 2) -> dict[str, jax.Array]:
    """Return y, its gradients, and derivatives of order 2, for one x and for batches."""
    primals = (x, weight, bias)

    def gradients(*primals):
        y, transposed = jax.vjp(function, *primals)
        return transposed(dy.astype(y.dtype))

    def every(*primals):
        found = dict(zip(FIRST, (function(*primals), *gradients(*primals)), strict=True))
        found["tangent"] = jax.jvp(function, primals, primals)[1]
        found["batch"] = jax.vmap(gradients)(*(each[None] for each in primals))
        if order == 1:
            return found
        found["forward over reverse"] = jax.jvp(gradients, primals, primals)[1]
        found["reverse over reverse"] = jax.vjp(gradients, *primals)[1](primals)
        batch = [jnp.stack([each, each]) for each in primals]
        for axes in ((0, None, None), (None, 0, 0)):
            given = [
                each if axis is None else two
                for each, two, axis in zip(primals, batch, axes, strict=True)
            ]
            found[f"batch along {axes}"] = jax.vmap(gradients, in_axes=axes)(*given)
        return found

    return jax.jit(every)(*primals)


FIRST = ("y", "dx", "dweight", "dbias")


def assert_same(found: dict, expected: dict, eps: float, *, bits: bool) -> None:
    for name in FIRST if bits else ():
        assert_same_bits(np.asarray(found[name]), np.asarray(expected[name]), name)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype
        scale = max(1, float(jnp.abs(b.astype("float32")).max()))
        widened = [np.asarray(each, np.float64) for each in (a, b)]
        np.testing.assert_allclose(*widened, rtol=4 * eps, atol=4 * eps * scale)


TYPES = [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")]


@functools.cache
def expected_of(call, types, order: int = 2) -> dict[str, jax.Array]:
    return results(call, *arrays_of(*types), order=order)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_settings_change_no_result_of_a_function(name, setting) -> None:
    for types in TYPES[1:] if setting == "strict types" else TYPES[1:2]:
        order = 2 if setting in ("strict types", "strict ranks", "no jit") else 1
        arrays, expected = arrays_of(*types), expected_of(FUNCTIONS[name], types, order)
        with SETTINGS[setting]():
            found = results(FUNCTIONS[name], *arrays, order=order)
        assert_same(found, expected, float(jnp.finfo(types[0]).eps), bits=True)


def serves(call, arrays) -> bool:
    try:
        jax.jit(call)(*arrays)
    except jax.dtypes.TypePromotionError:
        return False
    return True


@pytest.mark.parametrize("setting", list(SETTINGS)[:7])
@pytest.mark.parametrize("name", MODULES)
def test_settings_change_no_result_of_a_module_where_the_original_works(name, setting) -> None:
    theirs, mine = MODULES[name]
    served = []
    for types in TYPES if setting == "strict types" else TYPES[:1]:
        arrays = arrays_of(*types)
        with SETTINGS[setting]():
            if not serves(theirs, arrays[:3]):
                continue
            found = results(mine, *arrays, order=1)
        expected = expected_of(mine, types, 1)
        assert_same(found, expected, float(jnp.finfo(types[0]).eps), bits=False)
        served.append(types)
    # Under strict promotion Flax itself refuses 16 bits; Equinox does not.
    every = TYPES if "equinox" in name and setting == "strict types" else TYPES[:1]
    assert set(served) >= set(every)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_an_eager_call_moves_nothing_between_host_and_device(name) -> None:
    function = getattr(ours, name)
    given = arrays_of("float32", "float32")[: 3 if name == "layer_norm" else 2]
    expected = function(*given)
    with jax.transfer_guard("disallow"):
        y, transposed = jax.vjp(function, *given)
        transposed(y)
    np.testing.assert_array_equal(y, expected)


def test_float64_comes_and_goes_with_its_setting() -> None:
    wide = np.random.default_rng(0).normal(size=(3, 8))
    narrow = ours.layer_norm(wide)
    with enable_x64(True):
        assert ours.layer_norm(wide).dtype == "float64"
    assert narrow.dtype == ours.layer_norm(wide).dtype == "float32"


ASKED = {
    "y": lambda f, x: f(x),
    "jit": lambda f, x: jax.jit(f)(x),
    "gradient": lambda f, x: jax.vjp(f, x)[1](x),
    "gradient of dy": lambda f, x: jax.vjp(f, jnp.ones_like(x))[1](x),
    "tangent": lambda f, x: jax.jvp(f, (x,), (x,)),
    "batch": lambda f, x: jax.vmap(f)(x),
    "jit of gradient": lambda f, x: jax.jit(jax.grad(lambda x: f(x).sum()))(x),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_nan_is_found_where_the_setting_asks_for_it(kind, asked) -> None:
    x = jnp.asarray([[1.0, 2.0, np.nan], [1.0, 2.0, 4.0]])
    function = getattr(ours, kind)
    for _ in range(2):  # the first find leaves nothing behind
        with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
            ASKED[asked](function, x)
        jax.block_until_ready(ASKED[asked](function, x))
