"""The network in NumPy, with the layers of `layernorm.numpy` and every gradient by hand."""

from collections.abc import Iterator

import numpy as np

from layernorm.cli.demo.digits import SIZES
from layernorm.cli.demo.networks.network import Array, NormCall, Recipe, Step, Weights
from layernorm.numpy import SGD, Adam, LayerNorm, Parameter


class Linear:
    """y = x @ weight.T + bias."""

    def __init__(self, weight: Array, bias: Array) -> None:
        self.weight, self.bias = Parameter(weight.copy()), Parameter(bias.copy())
        self._x: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Return y, and remember x."""
        self._x = x
        y: Array = x @ self.weight.data.T + self.bias.data
        return y

    def backward(self, dy: Array) -> Array:
        """Return dx, and add to the gradients."""
        self.weight.accumulate(dy.T @ self._x)
        self.bias.accumulate(dy.sum(axis=0))
        dx: Array = dy @ self.weight.data
        return dx

    def parameters(self) -> Iterator[Parameter]:
        """Yield weight and bias."""
        yield from (self.weight, self.bias)


class ReLU:
    """y = max(x, 0)."""

    def __init__(self) -> None:
        self._is_positive: Array | None = None

    def __call__(self, x: Array) -> Array:
        """Return y, and remember where x is positive."""
        self._is_positive = x > 0
        return np.maximum(x, 0)

    def backward(self, dy: Array) -> Array:
        """Return dx."""
        dx: Array = dy * self._is_positive
        return dx

    def parameters(self) -> Iterator[Parameter]:
        """Yield nothing."""
        yield from ()


class Network:
    """A list of layers, called forward and then backward."""

    def __init__(self, weights: Weights, recipe: Recipe) -> None:
        self.norms = [LayerNorm(size) for size in SIZES[1:-1]]
        self.layers: list[Linear | LayerNorm | ReLU] = []
        for place, norm in enumerate(self.norms):
            first = 3 * place
            norm.load_state_dict(
                {name: weights[f"{first + 1}.{name}"] for name in ("weight", "bias")}
            )
            self.layers += [
                Linear(weights[f"{first}.weight"], weights[f"{first}.bias"]), norm, ReLU()
            ]  # fmt: skip
        last = 3 * len(self.norms)
        self.layers.append(Linear(weights[f"{last}.weight"], weights[f"{last}.bias"]))
        self._optimizer = (
            Adam(self.parameters(), lr=recipe.lr, betas=(0.9, recipe.beta2), eps=recipe.eps)
            if recipe.optimizer == "Adam"
            else SGD(self.parameters(), lr=recipe.lr, momentum=recipe.momentum)
        )

    def step(self, images: Array, labels: Array) -> Step:
        """Train on one batch."""
        logits, norm_calls = self.forward(images)
        loss, dlogits = softmax_cross_entropy(logits, labels)
        self._optimizer.zero_grad()
        self.backward(dlogits)
        self._optimizer.step()
        return Step(loss, norm_calls)

    def logits(self, images: Array) -> Array:
        """Return (images, 10)."""
        return self.forward(images)[0]

    def forward(self, images: Array) -> tuple[Array, list[NormCall]]:
        """Return the logits, and the arrays of each layer norm."""
        x, norm_calls = images, []
        for layer in self.layers:
            y = layer(x)
            if isinstance(layer, LayerNorm):
                norm_calls.append(NormCall(x, *_weight_and_bias(layer), y))
            x = y
        return x, norm_calls

    def backward(self, dy: Array) -> Array:
        """Return the gradient with respect to the images, and add to those of the parameters."""
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def parameters(self) -> Iterator[Parameter]:
        """Yield the parameters of all layers."""
        for layer in self.layers:
            yield from layer.parameters()

    def norm_parameters(self) -> list[tuple[Array, Array]]:
        """Return weight and bias of each layer norm."""
        return [_weight_and_bias(norm) for norm in self.norms]


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean loss of a batch and its gradient with respect to the logits."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    dlogits = np.exp(log_probability)
    dlogits[rows, labels] -= 1
    return float(-log_probability[rows, labels].mean()), dlogits / np.float32(len(labels))


def _weight_and_bias(norm: LayerNorm) -> tuple[Array, Array]:
    state = norm.state_dict()
    return state["weight"], state["bias"]
