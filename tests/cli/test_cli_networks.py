"""The digits' network: NumPy's gradients, and the same training in every framework."""

import itertools

import numpy as np
import pytest

pytest.importorskip("sklearn")

from layernorm.cli.demo import digits
from layernorm.cli.demo.networks import FRAMEWORKS, RECIPES, build_network
from layernorm.cli.demo.networks import numpy as in_numpy
from layernorm.cli.demo.training import train

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


def losses_from(weights: dict[str, digits.Array], recipe) -> np.ndarray:
    network = build_network("numpy", weights, recipe)
    epochs = digits.train(network, digits.load_digits(), EPOCHS)
    return np.concatenate([epoch.losses for epoch in epochs])


def effect_of_one_ulp(recipe) -> float:
    """Return how far a loss moves if every linear weight starts from a neighboring number."""
    weights = digits.initial_weights()
    rng = np.random.default_rng(0)
    moved = {
        # Up or down at random: a layer norm would cancel a common shift.
        name: np.nextafter(each, np.float32(rng.choice([-np.inf, np.inf], each.shape)))
        if each.ndim == 2
        else each
        for name, each in weights.items()
    }
    return np.abs(losses_from(moved, recipe) - losses_from(weights, recipe)).max()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
@each_recipe
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_training_in_each_framework_follows_that_in_numpy(framework, recipe) -> None:
    pytest.importorskip(framework)
    data = digits.load_digits()
    run = train(framework, recipe, data, EPOCHS)
    beside = train("numpy", recipe, data, EPOCHS)
    assert run.norm_outputs == EPOCHS * 22 * digits.BATCH_SIZE * sum(digits.SIZES[1:-1])
    assert run.other_bits == 0
    # The matrix products may be rounded differently in every step.
    assert run.largest_difference(beside) <= len(run.loss) * effect_of_one_ulp(recipe)
    for mine, other in zip(run.parameters, beside.parameters, strict=True):
        assert mine["moved"] == pytest.approx(other["moved"], rel=1e-3)
