"""Our Equinox modules have the fields, arguments, errors and types of Equinox's own."""

import numpy as np
import pytest
from calls import assert_same_bits

jax = pytest.importorskip("jax")
equinox = pytest.importorskip("equinox")

import jax.numpy as jnp  # noqa: E402

import layernorm.equinox as ours  # noqa: E402
import layernorm.numpy as numpy_front_end  # noqa: E402

each_class = pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


def both(name, *arguments, **options):
    return [getattr(each, name)(*arguments, **options) for each in (equinox.nn, ours)]


@each_class
def test_a_saved_layer_loads(name, tmp_path) -> None:
    theirs, mine = both(name, (3, 4))
    theirs = equinox.tree_at(lambda layer: layer.weight, theirs, jnp.asarray(random(3, 4)))
    equinox.tree_serialise_leaves(tmp_path / "layer.eqx", theirs)
    mine = equinox.tree_deserialise_leaves(tmp_path / "layer.eqx", mine)
    x = random(3, 4, seed=1)
    np.testing.assert_allclose(mine(x), theirs(x), atol=2e-6)


@pytest.mark.parametrize("options", [{}, {"use_weight": False}, {"use_bias": False}], ids=str)
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16", "float16", "int32"])
@each_class
def test_types_and_results_are_equinoxs(name, x_dtype, options) -> None:
    theirs, mine = both(name, 8, eps=1e-4, **options)
    x = jnp.asarray(random(5, 8) * 3, x_dtype)
    got, expected = jax.vmap(mine)(x), jax.vmap(theirs)(x)
    assert got.dtype == expected.dtype
    widened = [np.asarray(each, np.float64) for each in (got, expected)]
    eps = 0 if x_dtype == "int32" else float(jnp.finfo(x_dtype).eps)
    np.testing.assert_allclose(*widened, atol=4 * eps)


@each_class
def test_a_state_passes_through(name) -> None:
    theirs, mine = both(name, 8)
    x, state = random(8), object()
    y, passed = mine(x, state, key=jax.random.key(0))
    assert passed is state
    np.testing.assert_allclose(y, theirs(x, state)[0], atol=2e-6)


@each_class
def test_errors_are_equinoxs(name) -> None:
    _, mine = both(name, 8)
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        mine(random(2, 8))


def with_parameter(layer, field, value):
    return equinox.tree_at(
        lambda layer: getattr(layer, field), layer, value, is_leaf=lambda each: each is None
    )


@pytest.mark.parametrize("shape", [(), (1,), (3, 8)], ids=str)
@pytest.mark.parametrize("field", ["weight", "bias"])
@each_class
def test_parameters_of_other_shapes_are_broadcast(name, field, shape) -> None:
    value, x = jnp.asarray(random(*shape)), random(8, seed=1)
    theirs, mine = (with_parameter(each, field, value) for each in both(name, 8))
    np.testing.assert_array_equal(mine(x), theirs(x), strict=True)


@pytest.mark.parametrize("field", ["weight", "bias"])
@each_class
def test_a_parameter_that_is_switched_off_is_ignored(name, field) -> None:
    value, x = jnp.asarray(random(8)), random(8, seed=1)
    layers = both(name, 8, **{f"use_{field}": False})
    theirs, mine = (with_parameter(each, field, value) for each in layers)
    np.testing.assert_allclose(mine(x), theirs(x), atol=2e-6)


@pytest.mark.parametrize("field", ["weight", "bias"])
@each_class
def test_a_parameter_that_is_missing_is_equinoxs_error(name, field) -> None:
    for layer in both(name, 8):
        with pytest.raises(AttributeError, match="NoneType"):
            with_parameter(layer, field, None)(random(8))


array_as_static = pytest.mark.filterwarnings("ignore:A JAX array is being set as static")


@array_as_static
@each_class
def test_a_traced_eps_is_left_to_equinox(name) -> None:
    def loss(module, eps):
        return jnp.sum(getattr(module, name)(8, eps=eps)(random(8)) ** 3)

    for transform in (jax.jit, jax.grad):
        got, expected = (
            transform(lambda eps, module=module: loss(module, eps))(1e-3)
            for module in (ours, equinox.nn)
        )
        np.testing.assert_array_equal(got, expected)


REFUSED = {"negative": -1e-3, "infinite": np.inf, "several": np.full((3, 1), 0.1, np.float32)}


@pytest.mark.parametrize("eps", REFUSED.values(), ids=REFUSED)
@array_as_static
@each_class
def test_an_eps_that_the_kernels_refuse_is_left_to_equinox(name, eps) -> None:
    theirs, mine = both(name, 8, eps=eps)
    x = random(8)
    np.testing.assert_array_equal(mine(x), theirs(x), strict=True)


def test_vmap_is_one_call_with_the_bits_of_numpy() -> None:
    layer = ours.LayerNorm(33)
    layer = equinox.tree_at(lambda layer: layer.weight, layer, jnp.asarray(random(33)))
    x = random(7, 33, seed=1)
    mapped = equinox.filter_jit(equinox.filter_vmap(layer))
    y = numpy_front_end.layer_norm(x, random(33), np.zeros(33, np.float32))
    assert_same_bits(np.asarray(mapped(x)), y, "y")
    gradient = equinox.filter_grad(lambda layer: jnp.sum(jax.vmap(layer)(x) ** 2))(layer)
    assert gradient.weight.shape == (33,)
    assert gradient.bias.shape == (33,)
