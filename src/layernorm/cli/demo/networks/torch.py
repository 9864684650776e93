"""The network in PyTorch, with the layer norms of `layernorm.torch`."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from layernorm.cli.demo.digits import SIZES
from layernorm.cli.demo.networks.network import Array, NormCall, Recipe, Step, Weights
from layernorm.torch import LayerNorm


class Network:
    """A `torch.nn.Sequential` with the optimizer of `torch.optim`."""

    def __init__(self, weights: Weights, recipe: Recipe) -> None:
        self._layers = _layers()
        self._layers.load_state_dict({name: torch.tensor(each) for name, each in weights.items()})
        parameters = self._layers.parameters()
        self._optimizer = (
            torch.optim.Adam(parameters, lr=recipe.lr, betas=(0.9, recipe.beta2), eps=recipe.eps)
            if recipe.optimizer == "Adam"
            else torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum)
        )

    def step(self, images: Array, labels: Array) -> Step:
        """Train on one batch."""
        logits, norm_calls = self._forward(torch.from_numpy(images))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return Step(loss.item(), norm_calls)

    def logits(self, images: Array) -> Array:
        """Return (images, 10)."""
        with torch.no_grad():
            return _array(self._layers(torch.from_numpy(images)))

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm."""
        return [
            (_array(norm.weight), _array(norm.bias))
            for norm in self._layers
            if isinstance(norm, LayerNorm)
        ]

    def _forward(self, x: Tensor) -> tuple[Tensor, list[NormCall]]:
        norm_calls = []
        for layer in self._layers:
            y = layer(x)
            if isinstance(layer, LayerNorm):
                norm_calls.append(NormCall(*map(_array, (x, layer.weight, layer.bias, y))))
            x = y
        return x, norm_calls


def _layers() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(SIZES[:-1]):
        layers += [nn.Linear(inputs, outputs), LayerNorm(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*SIZES[-2:]))


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().numpy().copy()
    return array
