"""Our Flax modules have the parameters and types of Flax's own, and are more accurate."""

import warnings

import numpy as np
import pytest
from calls import assert_same_bits

jax = pytest.importorskip("jax")
pytest.importorskip("flax", minversion="0.12")

import jax.numpy as jnp  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import flax.linen
    import flax.nnx

import layernorm.numpy as numpy_front_end  # noqa: E402
from layernorm import accuracy  # noqa: E402
from layernorm.flax import linen, nnx  # noqa: E402

NAMES = ("LayerNorm", "RMSNorm")
each_class = pytest.mark.parametrize("name", NAMES)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def of_linen(module, name, **options):
    return getattr(module, name)(**options)


def of_nnx(module, name, size, **options):
    return getattr(module, name)(size, rngs=flax.nnx.Rngs(0), **options)


@each_class
def test_a_checkpoint_of_linens_loads(name) -> None:
    x = random(4, 5, 6)
    theirs, mine = of_linen(flax.linen, name), of_linen(linen, name)
    variables = theirs.init(jax.random.key(0), x)
    assert jax.tree.structure(mine.init(jax.random.key(0), x)) == jax.tree.structure(variables)
    variables = jax.tree.map(lambda each: jnp.asarray(random(*each.shape)), variables)
    np.testing.assert_allclose(mine.apply(variables, x), theirs.apply(variables, x), atol=1e-5)


@each_class
def test_a_checkpoint_of_nnxs_loads(name) -> None:
    x = random(4, 5, 6)
    theirs, mine = of_nnx(flax.nnx, name, 6), of_nnx(nnx, name, 6)
    theirs.scale[...] = jnp.asarray(random(6))
    state = flax.nnx.state(theirs)
    assert jax.tree.structure(flax.nnx.state(mine)) == jax.tree.structure(state)
    flax.nnx.update(mine, state)
    np.testing.assert_allclose(mine(x), theirs(x), atol=1e-5)


@each_class
def test_a_linen_module_has_linens_name_in_a_model(name) -> None:
    class Model(flax.linen.Module):
        source: object

        @flax.linen.compact
        def __call__(self, x):
            return getattr(self.source, name)()(flax.linen.Dense(3)(x))

    x = random(2, 3)
    found = [Model(each).init(jax.random.key(0), x)["params"] for each in (flax.linen, linen)]
    assert list(found[0]) == list(found[1])


TYPES = (None, "float32", "bfloat16", "float16")


@pytest.mark.parametrize("param_dtype", TYPES[1:])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("x_dtype", [*TYPES[1:], "int32"])
@each_class
def test_types_follow_flaxs_rules(name, x_dtype, dtype, param_dtype) -> None:
    x = jnp.asarray(random(3, 8) * 3, x_dtype)
    options = {"dtype": dtype and jnp.dtype(dtype), "param_dtype": jnp.dtype(param_dtype)}
    theirs, mine = of_linen(flax.linen, name, **options), of_linen(linen, name, **options)
    variables = theirs.init(jax.random.key(0), x)
    pairs = [(mine.apply(variables, x), theirs.apply(variables, x))]
    pairs.append((of_nnx(nnx, name, 8, **options)(x), of_nnx(flax.nnx, name, 8, **options)(x)))
    for got, expected in pairs:
        assert got.dtype == expected.dtype
        widened = [np.asarray(each, np.float32) for each in (got, expected)]
        np.testing.assert_allclose(*widened, atol=8 * float(jnp.finfo(got.dtype).eps))


AXES = [
    {"reduction_axes": 1, "feature_axes": 1},
    {"reduction_axes": (1, 2), "feature_axes": (1, 2)},
    {"reduction_axes": (-1, 1), "feature_axes": -1},
    {"reduction_axes": -2, "feature_axes": (1, 3)},
    {"reduction_axes": (0, 3), "feature_axes": (0, 3)},
]


@pytest.mark.parametrize("axes", AXES, ids=str)
@each_class
def test_axes_are_flaxs(name, axes) -> None:
    x = random(2, 3, 4, 5)
    theirs, mine = of_linen(flax.linen, name, **axes), of_linen(linen, name, **axes)
    variables = theirs.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda each: jnp.asarray(random(*each.shape)), variables)

    def loss(module, variables, x):
        return jnp.sum(jnp.sin(module.apply(variables, x)))

    np.testing.assert_allclose(mine.apply(variables, x), theirs.apply(variables, x), atol=1e-5)
    both = [jax.grad(loss, argnums=(1, 2))(each, variables, x) for each in (mine, theirs)]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("place", ["linen", "nnx"])
@each_class
def test_a_mask_says_which_elements_count(name, place) -> None:
    x = random(4, 16) + 300
    mask = np.random.default_rng(1).random((4, 16)) < 0.7
    hidden = np.where(mask, x, np.nan)
    if place == "linen":
        y, _ = of_linen(linen, name).init_with_output(jax.random.key(0), hidden, mask=mask)
    else:
        y = of_nnx(nnx, name, 16)(hidden, mask=mask)
    for at, row in enumerate(np.asarray(y)):
        kept = x[at][mask[at]].astype(np.float64)
        rest = kept - kept.mean() if name == "LayerNorm" else kept
        expected = rest / np.sqrt((rest**2).mean() + 1e-6)
        np.testing.assert_allclose(row[mask[at]], expected, rtol=1e-5, atol=1e-5)


@each_class
def test_a_mean_over_devices(name) -> None:
    x = random(4, 8)
    whole = of_linen(linen, name, use_scale=False, reduction_axes=(0, 1), feature_axes=(0, 1))
    options = {"use_bias": False} if name == "LayerNorm" else {}
    whole = whole.clone(**options)
    part = of_linen(linen, name, use_scale=False, axis_name="devices", **options)
    expected = whole.apply({}, x)
    got = jax.vmap(lambda row: part.apply({}, row), axis_name="devices")(x)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_bits_are_those_of_numpy() -> None:
    x = random(5, 33)
    scale, bias = random(33, seed=1), random(33, seed=2)
    variables = {"params": {"scale": scale, "bias": bias}}
    y = numpy_front_end.layer_norm(x, scale, bias, eps=1e-6)
    assert_same_bits(np.asarray(linen.LayerNorm().apply(variables, x)), y, "y")
    half = x.astype("float16")
    y = numpy_front_end.layer_norm(half, scale, bias, eps=1e-6)
    module = linen.LayerNorm(dtype=jnp.float16)
    assert_same_bits(np.asarray(module.apply(variables, half)), y, "y in 16 bits")


def test_right_where_flax_is_not() -> None:
    """By default Flax computes the variance as the difference of two large numbers."""
    x = random(4, 64) + 30_000
    theirs, mine = flax.linen.LayerNorm(), linen.LayerNorm()
    variables = theirs.init(jax.random.key(0), x)
    errors = [
        accuracy.y_error(np.asarray(each.apply(variables, x)), x, None, None, eps=1e-6)
        for each in (mine, theirs)
    ]
    assert errors[0] <= accuracy.BOUNDS["float32"].y
    assert errors[1] > 1000


def test_complex_numbers_are_left_to_flax() -> None:
    x = random(3, 4) + 1j * random(3, 4, seed=1)
    theirs, mine = flax.linen.LayerNorm(), linen.LayerNorm()
    variables = theirs.init(jax.random.key(0), x)
    np.testing.assert_array_equal(mine.apply(variables, x), theirs.apply(variables, x))
    np.testing.assert_array_equal(of_nnx(nnx, "RMSNorm", 4)(x), of_nnx(flax.nnx, "RMSNorm", 4)(x))


@each_class
def test_a_traced_epsilon_is_left_to_flax(name) -> None:
    x = random(3, 8)
    theirs, mine = (of_linen(each, name) for each in (flax.linen, linen))
    variables = theirs.init(jax.random.key(0), x)

    def call(module, epsilon):
        return jax.jit(lambda e: module.clone(epsilon=e).apply(variables, x))(epsilon)

    np.testing.assert_array_equal(call(mine, 0.1), call(theirs, 0.1))


@pytest.mark.parametrize("place", ["linen", "nnx"])
@each_class
def test_a_complex_scale_is_not_made_real(name, place) -> None:
    x, scale = random(3, 8), random(8) + 1j * random(8, seed=1)

    def call(linen, nnx):
        if place == "linen":
            variables = of_linen(linen, name).init(jax.random.key(0), x)
            variables["params"]["scale"] = jnp.asarray(scale)
            return of_linen(linen, name).apply(variables, x)
        module = of_nnx(nnx, name, 8)
        module.scale = flax.nnx.Param(jnp.asarray(scale))
        return module(x)

    got, expected = call(linen, nnx), call(flax.linen, flax.nnx)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, atol=1e-5)


REFUSED = {
    "no axes": {"reduction_axes": ()},
    "negative": {"epsilon": -1e-3},
    "infinite": {"epsilon": np.inf},
    "several": {"epsilon": np.full((4, 6, 1), 0.1, np.float32)},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("place", ["linen", "nnx"])
@each_class
def test_settings_that_the_kernels_refuse_are_left_to_flax(name, place, options) -> None:
    x = random(4, 6, 8)

    def call(linen, nnx):
        if place == "nnx":
            return of_nnx(nnx, name, 8, **options)(x)
        return of_linen(linen, name, **options).init_with_output(jax.random.key(0), x)[0]

    expected = call(flax.linen, flax.nnx)
    np.testing.assert_array_equal(call(linen, nnx), expected, strict=True)


@each_class
def test_nnxs_modules_take_a_list(name) -> None:
    x = random(3, 8)
    y = of_nnx(nnx, name, 8)(x.tolist())
    assert isinstance(of_nnx(flax.nnx, name, 8)(x.tolist()), jax.Array)
    assert_same_bits(np.asarray(y), np.asarray(of_nnx(nnx, name, 8)(x)), "y of a list")
