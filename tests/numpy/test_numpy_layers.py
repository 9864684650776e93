"""The layers: arguments, accumulated gradients, and checkpoints exchanged with PyTorch."""

import copy
import doctest
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from layernorm import numpy as front
from layernorm import reference
from layernorm.numpy import LayerNorm, Parameter, RMSNorm, functional, layers

PAGE = Path(__file__).parents[2] / "docs" / "numpy.md"


def a_layer_and_batches(layer_type, normalized_shape=(3, 4), dtype=np.float64, **options):
    rng = np.random.default_rng(30)
    layer = layer_type(normalized_shape, dtype=dtype, **options)
    for parameter in layer.parameters():
        parameter.data[...] = rng.uniform(0.5, 2.0, parameter.data.shape)
    x = rng.normal(size=(5, *layer.normalized_shape)).astype(dtype) + 2
    return layer, x, rng.normal(size=x.shape).astype(dtype)


def data_of(parameter):
    return None if parameter is None else parameter.data


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}], ids=repr)
def test_layer_norm_and_its_backward_are_the_definition(options):
    layer, x, dy = a_layer_and_batches(LayerNorm, eps=0.1, **options)
    weight, bias = data_of(layer.weight), data_of(layer.bias)
    definition = {"axis": (-2, -1), "eps": 0.1}
    np.testing.assert_allclose(layer(x), reference.layer_norm(x, weight, bias, **definition))
    dx, dweight, dbias = reference.layer_norm_backward(dy, x, weight, **definition)
    np.testing.assert_allclose(layer.backward(dy), dx)
    if layer.weight is not None:
        np.testing.assert_allclose(layer.weight.grad, dweight)
    if layer.bias is not None:
        np.testing.assert_allclose(layer.bias.grad, dbias)


@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_and_its_backward_are_the_definition(affine):
    layer, x, dy = a_layer_and_batches(RMSNorm, eps=0.1, elementwise_affine=affine)
    weight = data_of(layer.weight)
    definition = {"axis": (-2, -1), "eps": 0.1}
    np.testing.assert_allclose(layer(x), reference.rms_norm(x, weight, **definition))
    expected = reference.rms_norm_backward(dy, x, weight, **definition)
    np.testing.assert_allclose(layer.backward(dy), expected[0])
    if affine:
        np.testing.assert_allclose(layer.weight.grad, expected[1])


@pytest.mark.parametrize("normalized_shape", [12, (3, 4)])
@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}], ids=repr)
@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_a_layer_takes_the_fast_path_to_the_bits_of_the_general_one(
    layer_type, options, normalized_shape, monkeypatch
):
    layer, x, dy = a_layer_and_batches(layer_type, normalized_shape, **options)

    def results():
        layer.zero_grad()
        y, dx = layer(x), layer.backward(dy)
        gradients = [each.grad for each in layer.parameters()]
        return [each.tobytes() for each in (y, dx, *gradients)]

    with monkeypatch.context() as without_general_path:
        without_general_path.delattr(layers, "norm_beside")
        without_general_path.delattr(functional, "backward")
        fast = results()
    monkeypatch.setattr(layers, "try_layer_forward", lambda *_: None)
    monkeypatch.setattr(functional, "try_backward", lambda *_: None)
    assert results() == fast


@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
@pytest.mark.parametrize("x_shape", [(4,), (2, 4), (2, 3, 4), (2, 2, 3, 4)], ids=repr)
@pytest.mark.parametrize("new", [(4,), (3, 4), (2, 3, 4)], ids=repr)
def test_a_layer_follows_a_normalized_shape_that_was_set(layer_type, x_shape, new):
    layer = layer_type((3, 4), elementwise_affine=False)
    layer.normalized_shape = new
    x = np.random.default_rng(1).normal(size=x_shape)
    if x_shape[-len(new) :] == new:
        assert layer(x).tobytes() == layer_type(new, elementwise_affine=False)(x).tobytes()
    else:
        with pytest.raises(ValueError, match="needs"):
            layer(x)


@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_gradients_add_up_until_they_are_forgotten(layer_type):
    layer, x, dy = a_layer_and_batches(layer_type)
    layer(x)
    layer.backward(dy)
    once = {name: parameter.grad.copy() for name, parameter in layer.named_parameters()}
    layer(x)
    layer.backward(dy)
    for name, parameter in layer.named_parameters():
        np.testing.assert_array_equal(parameter.grad, 2 * once[name])
    layer.zero_grad()
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_parameters_start_as_ones_and_zeros_of_the_type(layer_type, dtype):
    layer = layer_type([3, 4], dtype=dtype)
    named = dict(layer.named_parameters())
    assert list(named) == (["weight", "bias"] if layer_type is LayerNorm else ["weight"])
    assert (named["weight"].data == 1).all()
    assert "bias" not in named or (named["bias"].data == 0).all()
    assert all(each.data.dtype == dtype and each.data.shape == (3, 4) for each in named.values())
    assert list(layer.parameters()) == list(named.values())
    x = np.ones((2, 3, 4), dtype)
    assert layer(x).dtype == layer.backward(x).dtype == dtype


def test_16_bit_x_with_float32_parameters():
    layer = LayerNorm(8)
    x = np.arange(16).reshape(2, 8).astype(np.float16)
    assert layer(x).dtype == np.float16
    assert layer.backward(x).dtype == np.float16
    assert layer.weight.grad.dtype == np.float32


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"normalized_shape is 2\.5"):
        LayerNorm(2.5)
    with pytest.raises(ValueError, match="eps is -1"):
        LayerNorm(4, eps=-1)
    with pytest.raises(TypeError, match="dtype is int64, expected float16"):
        RMSNorm(4, dtype=int)


@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_a_wrong_x_or_order_of_calls_says_why(layer_type):
    layer = layer_type((3, 4))
    with pytest.raises(ValueError, match="backward was called before any forward"):
        layer.backward(np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\).*needs \(\.\.\., 3, 4\)"):
        layer(np.zeros((4, 3), np.float32))
    with pytest.raises(TypeError, match=r"np\.asarray\(x, np\.float32\)"):
        layer(np.zeros((3, 4), int))
    layer(np.zeros((2, 3, 4), np.float32))
    with pytest.raises(ValueError, match="dy has shape"):
        layer.backward(np.zeros((3, 4), np.float32))


def test_repr():
    assert repr(LayerNorm(768)) == "LayerNorm((768,), eps=1e-05, elementwise_affine=True)"
    assert repr(LayerNorm([3, 4], bias=False)) == (
        "LayerNorm((3, 4), eps=1e-05, elementwise_affine=True, bias=False)"
    )
    assert repr(RMSNorm(5, elementwise_affine=False)) == (
        "RMSNorm((5,), eps=1e-06, elementwise_affine=False)"
    )
    assert repr(Parameter(np.zeros((2, 3)))) == "Parameter(shape=(2, 3), dtype=float64)"


@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_a_state_restores_the_layer_and_does_not_follow_its_training(layer_type):
    layer, *_ = a_layer_and_batches(layer_type)
    state = layer.state_dict()
    kept = {name: array.copy() for name, array in state.items()}
    for parameter in layer.parameters():
        parameter.data += 1
    layer.load_state_dict(state)
    for name, parameter in layer.named_parameters():
        np.testing.assert_array_equal(parameter.data, kept[name])


def test_a_state_that_does_not_fit_is_rejected_whole():
    layer, *_ = a_layer_and_batches(LayerNorm)
    before = layer.state_dict()
    good = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"missing \['bias'\], unknown \['gamma'\]"):
        layer.load_state_dict({"weight": good, "gamma": good})
    with pytest.raises(ValueError, match=r"bias has shape \(4,\).*\(3, 4\)"):
        layer.load_state_dict({"weight": good, "bias": np.zeros(4)})
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    layer.load_state_dict({"weight": good, "gamma": good}, strict=False)
    np.testing.assert_array_equal(layer.weight.data, good)
    np.testing.assert_array_equal(layer.bias.data, before["bias"])


def from_torch(tensor):
    return tensor.detach().numpy()


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_checkpoints_go_both_ways(name, dtype):
    torch = pytest.importorskip("torch")
    ours, x, dy = a_layer_and_batches(getattr(front, name), dtype=dtype)
    theirs = getattr(torch.nn, name)((3, 4), eps=ours.eps, dtype=getattr(torch, dtype))
    state = {key: torch.from_numpy(array) for key, array in ours.state_dict().items()}
    assert list(theirs.state_dict()) == list(state)
    theirs.load_state_dict(state)

    tensor = torch.from_numpy(x).requires_grad_()
    theirs(tensor).backward(torch.from_numpy(dy))
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(ours(x), from_torch(theirs(tensor)), tolerance, tolerance)
    np.testing.assert_allclose(ours.backward(dy), from_torch(tensor.grad), tolerance, tolerance)
    for key, parameter in theirs.named_parameters():
        grad = dict(ours.named_parameters())[key].grad
        np.testing.assert_allclose(grad, from_torch(parameter.grad), tolerance, tolerance)

    fresh = getattr(front, name)((3, 4), dtype=dtype)
    fresh.load_state_dict(theirs.state_dict())
    for key, parameter in fresh.named_parameters():
        np.testing.assert_array_equal(parameter.data, state[key])
    fresh.load_state_dict(dict(theirs.named_parameters()))  # tensors that require gradients
    np.testing.assert_array_equal(fresh.weight.data, ours.weight.data)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_bfloat16_checkpoint_loads(dtype):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LayerNorm(4, dtype=torch.bfloat16)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor([1.1, 0.3, -2.7, 3e38]))
    layer = LayerNorm(4, dtype=dtype)
    layer.load_state_dict(theirs.state_dict())
    expected = theirs.weight.detach().float().numpy()
    np.testing.assert_array_equal(layer.weight.data.astype(np.float32), expected)


@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_defaults_are_pytorchs(layer_type):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, layer_type.__name__)(6)
    ours = layer_type(6)
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[key], tensor.numpy())
    if layer_type is LayerNorm:
        assert ours.eps == theirs.eps


def test_the_examples_of_the_users_page_run():
    results = doctest.testfile(str(PAGE), module_relative=False)
    assert results.attempted > 10
    assert results.failed == 0


COPIES = {
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {n}": lambda each, n=n: pickle.loads(pickle.dumps(each, n)) for n in (2, 5)},
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_a_copied_layer_has_the_parameters_and_settings_but_not_the_last_call(
    layer_type, dtype, way
):
    layer, x, dy = a_layer_and_batches(layer_type, dtype=dtype, eps=0.1)
    y, dx = layer(x), layer.backward(dy)
    fresh = COPIES[way](layer)
    with pytest.raises(ValueError, match=r"before any forward of .*copied or unpickled"):
        fresh.backward(dy)
    assert type(fresh) is layer_type
    assert repr(fresh) == repr(layer)
    np.testing.assert_array_equal(fresh(x), y)
    fresh.zero_grad()
    np.testing.assert_array_equal(fresh.backward(dy), dx)
    np.testing.assert_array_equal(layer.backward(dy), dx)  # the original has kept its call


@pytest.mark.parametrize("layer_type", [LayerNorm, RMSNorm])
def test_a_pickled_layer_does_not_grow_with_the_batch(layer_type):
    layer = layer_type(8)
    before = len(pickle.dumps(layer))
    layer(np.ones((1000, 8), np.float32))
    assert len(pickle.dumps(layer)) == before


def test_a_pickled_layer_keeps_its_gradients_and_attributes():
    layer, x, dy = a_layer_and_batches(LayerNorm)
    layer(x)
    layer.backward(dy)
    layer.name = "first"
    fresh = pickle.loads(pickle.dumps(layer))
    assert fresh.name == "first"
    np.testing.assert_array_equal(fresh.weight.grad, layer.weight.grad)
