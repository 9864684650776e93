"""SGD and Adam take torch.optim's steps."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from layernorm.numpy import SGD, Adam, LayerNorm, Parameter

STEPS = 100

SGD_OPTIONS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.8, "weight_decay": 0.05},
    {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
]
ADAM_OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"betas": (0.8, 0.99), "eps": 1e-3},
    {"betas": (0.3, 0.5)},
    {"betas": (0.0, 0.0), "eps": 1e-2},
]


def gradient(data, step, scale):
    """Return a gradient that does not vanish, so that late steps test as much as early ones."""
    return np.asarray(scale * np.sin(3.0 * data + 0.37 * step) + 0.1 * data)


def assert_same_steps(ours_type, theirs_type, lr, options):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(40)
    starts = [rng.normal(size=shape) for shape in [(7,), (3, 4), ()]]
    scales = [1.0, 1e-3, 1e3]  # gradients near eps, and far above it
    ours = [Parameter(start.copy()) for start in starts]
    theirs = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    ours_optimizer = ours_type(ours, lr=lr, **options)
    theirs_optimizer = theirs_type(theirs, lr=lr, **options)
    for step in range(STEPS):
        ours_optimizer.zero_grad()
        theirs_optimizer.zero_grad()
        for index, (mine, other, scale) in enumerate(zip(ours, theirs, scales, strict=True)):
            if index == 1 and step % 3 == 1:  # no gradient: the step is skipped, and not counted
                continue
            mine.grad = gradient(mine.data, step, scale)
            other.grad = torch.from_numpy(gradient(other.detach().numpy(), step, scale))
        if step == STEPS // 2:
            ours_optimizer.lr = lr / 2
            theirs_optimizer.param_groups[0]["lr"] = lr / 2
        ours_optimizer.step()
        theirs_optimizer.step()
    for mine, other, start in zip(ours, theirs, starts, strict=True):
        assert not np.allclose(mine.data, start)
        np.testing.assert_allclose(mine.data, other.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=repr)
def test_sgd_takes_the_steps_of_torch(options):
    torch = pytest.importorskip("torch")
    assert_same_steps(SGD, torch.optim.SGD, 1e-4, options)


@pytest.mark.parametrize("options", ADAM_OPTIONS, ids=repr)
def test_adam_takes_the_steps_of_torch(options):
    torch = pytest.importorskip("torch")
    assert_same_steps(Adam, torch.optim.Adam, 1e-3, options)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: SGD(parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda parameters: Adam(parameters, 0.1, weight_decay=0.1),
    ],
    ids=["sgd", "adam"],
)
def test_the_data_keeps_its_type_and_its_memory(make, dtype):
    parameter = Parameter(np.ones(3, dtype))
    memory = parameter.data
    optimizer = make([parameter])
    for _ in range(3):
        parameter.grad = np.array([1, -1, 0.5], dtype)
        optimizer.step()
    assert parameter.data is memory
    assert memory.dtype == dtype
    assert (memory[[0, 2]] < 1).all()
    assert memory[1] > 1
    np.testing.assert_array_equal(parameter.grad, np.array([1, -1, 0.5], dtype))


def test_a_step_leaves_the_gradient_and_zero_grad_forgets_it():
    layer = LayerNorm(5)
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.5)
    x = np.random.default_rng(41).normal(size=(4, 5)).astype(np.float32)
    layer(x)
    layer.backward(x)
    before = layer.weight.grad.copy()
    optimizer.step()
    optimizer.step()
    np.testing.assert_array_equal(layer.weight.grad, before)
    optimizer.zero_grad()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_arguments_are_checked(optimizer):
    parameters = [Parameter(np.zeros(3))]
    with pytest.raises(ValueError, match="parameters is empty"):
        optimizer([], lr=0.1)
    with pytest.raises(TypeError, match=r"parameters holds a ndarray.*Parameter\(array\)"):
        optimizer([np.zeros(3)], lr=0.1)
    for name in ("lr", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            optimizer(parameters, **{"lr": 0.1, name: -1.0})
        with pytest.raises(ValueError, match=f"{name} is nan"):
            optimizer(parameters, **{"lr": 0.1, name: float("nan")})


def test_arguments_of_each_are_checked():
    parameters = [Parameter(np.zeros(3))]
    with pytest.raises(ValueError, match=r"momentum is -0\.1"):
        SGD(parameters, lr=0.1, momentum=-0.1)
    with pytest.raises(ValueError, match=r"nesterov is True with momentum 0\.0"):
        SGD(parameters, lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match="eps is -1"):
        Adam(parameters, eps=-1.0)
    for betas in [(1.0, 0.9), (0.9, -0.1)]:
        with pytest.raises(ValueError, match="betas are"):
            Adam(parameters, betas=betas)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: Adam(p, 0.1, weight_decay=0.01),
    ],
    ids=["sgd", "adam"],
)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copied_optimizer_goes_on_with_the_same_steps(make, way):
    rng = np.random.default_rng(5)
    layer = LayerNorm(4)
    optimizer = make(layer.parameters())

    def train(layer, optimizer, batches):
        for x, dy in batches:
            optimizer.zero_grad()
            layer(x)
            layer.backward(dy)
            optimizer.step()
        return [each.data.copy() for each in layer.parameters()]

    batches = rng.normal(size=(6, 2, 50, 4)).astype(np.float32)
    train(layer, optimizer, batches[:3])
    size = len(pickle.dumps((layer, optimizer)))
    fresh_layer, fresh_optimizer = way((layer, optimizer))
    assert fresh_optimizer.parameters[0] is fresh_layer.weight
    expected = train(layer, optimizer, batches[3:])
    for a, b in zip(train(fresh_layer, fresh_optimizer, batches[3:]), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(pickle.dumps((layer, optimizer))) == pytest.approx(size, abs=64)


@pytest.mark.parametrize("optimizer", [SGD, Adam])
def test_arguments_of_other_types_say_what_to_pass(optimizer):
    layer = LayerNorm(4)
    with pytest.raises(TypeError, match=r"parameters is of type Parameter.*layer\.parameters"):
        optimizer(layer.weight, lr=0.1)
    with pytest.raises(TypeError, match=r"lr is None of type NoneType.*lr=0\.01"):
        optimizer(layer.parameters(), lr=None)
