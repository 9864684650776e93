"""The digits' network: NumPy's gradients, and the same training in every framework."""

import functools
import itertools

import numpy as np
import pytest

pytest.importorskip("sklearn")

from layernorm.cli.demo import digits
from layernorm.cli.demo.networks import FRAMEWORKS, RECIPES, build_network
from layernorm.cli.demo.networks import numpy as in_numpy
from layernorm.cli.demo.training import Run, train

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.optimizer)

EPOCHS = 5


def test_the_network_has_the_gradients_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    weights = digits.initial_weights()
    sizes = digits.SIZES
    layers = []
    for place, (inputs_, outputs) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(inputs_, outputs))
        if place < len(sizes) - 2:
            layers += [nn.LayerNorm(outputs), nn.ReLU()]
    theirs = nn.Sequential(*layers)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    own = in_numpy.Network(weights, RECIPES[0])

    rng = np.random.default_rng(0)
    images = rng.random((32, sizes[0]), dtype=np.float32)
    labels = rng.integers(0, sizes[-1], 32)
    loss, dlogits = in_numpy.softmax_cross_entropy(own.logits(images), labels)
    own.backward(dlogits)
    their_loss = nn.functional.cross_entropy(
        theirs(torch.from_numpy(images)), torch.from_numpy(labels)
    )
    their_loss.backward()

    assert loss == pytest.approx(their_loss.item(), rel=1e-5)
    for mine, other in zip(own.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(mine.grad, other.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_the_data_of_a_training_are_the_same_each_time() -> None:
    first, second = digits.initial_weights(), digits.initial_weights()
    assert all((first[name] == second[name]).all() for name in first)
    for epoch in range(2):
        order = [np.concatenate(list(digits.batches(200, epoch=epoch))) for _ in range(2)]
        assert (order[0] == order[1]).all()
        assert len(set(order[0])) == len(order[0])


def moved_by_one_ulp(weights: dict[str, digits.Array]) -> dict[str, digits.Array]:
    """Return linear weights that are each the next number, up or down.

    At random: a layer norm would cancel a common shift.
    """
    rng = np.random.default_rng(0)
    return {
        name: np.nextafter(each, np.float32(rng.choice([-np.inf, np.inf], each.shape)))
        if each.ndim == 2
        else each
        for name, each in weights.items()
    }


@functools.cache
def in_numpy_with(recipe) -> tuple[Run, float]:
    """Train in NumPy; return the run, and how far one ulp of the first weights moves its losses."""
    data = digits.load_digits()
    run = train("numpy", recipe, data, EPOCHS)
    network = build_network("numpy", moved_by_one_ulp(digits.initial_weights()), recipe)
    losses = np.concatenate([each.losses for each in digits.train(network, data, EPOCHS)])
    return run, np.abs(losses - run.loss).max()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
@each_recipe
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_training_in_each_framework_follows_that_in_numpy(framework, recipe) -> None:
    pytest.importorskip(framework)
    run = train(framework, recipe, digits.load_digits(), EPOCHS)
    beside, effect_of_one_ulp = in_numpy_with(recipe)
    assert run.norm_outputs == EPOCHS * 22 * digits.BATCH_SIZE * sum(digits.SIZES[1:-1])
    assert run.other_bits == 0
    # The matrix products may be rounded differently in every step.
    assert run.largest_difference(beside) <= len(run.loss) * effect_of_one_ulp
    for mine, other in zip(run.parameters, beside.parameters, strict=True):
        assert mine["moved"] == pytest.approx(other["moved"], rel=1e-3)
