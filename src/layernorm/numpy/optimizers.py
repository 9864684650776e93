"""Gradient descent for the layers' parameters, with the steps of torch.optim."""

import math
from collections.abc import Iterable

import numpy as np

from layernorm.numpy import arrays
from layernorm.numpy.arrays import Array
from layernorm.numpy.layers import Parameter


class _Optimizer:
    """The parameters of an optimizer, and the gradient that a step follows."""

    def __init__(
        self, parameters: Iterable[Parameter], lr: float, weight_decay: float, **others: float
    ) -> None:
        if not isinstance(parameters, Iterable):
            raise TypeError(
                f"parameters is of type {type(parameters).__name__}, expected Parameters: "
                "pass layer.parameters(), or [Parameter(array)]"
            )
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(
                "parameters is empty, expected at least one Parameter: pass layer.parameters()"
            )
        for parameter in self.parameters:
            if not isinstance(parameter, Parameter):
                raise TypeError(
                    f"parameters holds a {type(parameter).__name__}, expected Parameters: "
                    "pass layer.parameters(), or Parameter(array)"
                )
        for name, value in {"lr": lr, "weight_decay": weight_decay, **others}.items():
            if not hasattr(type(value), "__float__"):
                raise TypeError(
                    f"{name} is {value!r} of type {type(value).__name__}, expected a number: "
                    f"pass for example {name}=0.01"
                )
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(
                    f"{name} is {value}, expected a finite number that is not negative: "
                    f"pass for example {name}=0.01"
                )
        self.lr = lr
        self.weight_decay = weight_decay

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters:
            parameter.zero_grad()

    def _gradient(self, parameter: Parameter) -> Array | None:
        """Return the gradient with the weight decay, or None before any backward."""
        if parameter.grad is None:
            return None
        grad = arrays.as_array("grad", parameter.grad)
        return grad + self.weight_decay * parameter.data if self.weight_decay else grad


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum, with the steps of torch.optim.SGD.

    With g = grad + weight_decay * data:
    buffer = g at the first step, then momentum * buffer + g;
    data -= lr * buffer, or with `nesterov` lr * (g + momentum * buffer).

    Args:
        parameters: Parameters; a step skips those without a gradient.
        lr: step size; may be changed between steps.
        momentum, weight_decay: 0 for none.
        nesterov: whether to use Nesterov's momentum; momentum must not be 0 then.
    Raises: ValueError for negative or infinite numbers, or no parameters.
    Source: Sutskever, Martens, Dahl and Hinton 2013 (momentum, in PyTorch's form).
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, momentum=momentum)
        if nesterov and not momentum:
            raise ValueError(
                "nesterov is True with momentum 0.0, expected a momentum: pass momentum=0.9"
            )
        self.momentum = momentum
        self.nesterov = nesterov
        self._buffers: list[Array | None] = [None] * len(self.parameters)

    def step(self) -> None:
        """Update the data of each parameter in place."""
        for index, parameter in enumerate(self.parameters):
            grad = self._gradient(parameter)
            if grad is None:
                continue
            if self.momentum:
                buffer = self._buffers[index]
                if buffer is None:
                    buffer = self._buffers[index] = np.array(grad, parameter.data.dtype)
                else:
                    buffer[...] = buffer * self.momentum + grad
                grad = grad + self.momentum * buffer if self.nesterov else buffer
            parameter.data[...] = parameter.data - self.lr * grad


class Adam(_Optimizer):
    """Adam, with the steps of torch.optim.Adam.

    With g = grad + weight_decay * data, at step t:
    mean += (1 - beta1) * (g - mean);  square = beta2 * square + (1 - beta2) * g**2;
    data -= lr / (1 - beta1**t) * mean / (sqrt(square) / sqrt(1 - beta2**t) + eps).

    Args:
        parameters: Parameters; a step skips those without a gradient.
        lr: step size; may be changed between steps.
        betas: decay rates of the averages of g and of its square, each in [0, 1).
        eps: added to the root of the average square, in units of the gradient.
        weight_decay: 0 for none.
    Raises: ValueError for numbers out of range, or no parameters.
    Source: Kingma and Ba 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, eps=eps)
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(
                f"betas are {betas}, expected two numbers from 0 to below 1: "
                "pass for example betas=(0.9, 0.999)"
            )
        self.betas = betas
        self.eps = eps
        self._steps = [0] * len(self.parameters)
        self._means = [np.zeros_like(parameter.data) for parameter in self.parameters]
        self._squares = [np.zeros_like(parameter.data) for parameter in self.parameters]

    def step(self) -> None:
        """Update the data of each parameter in place."""
        beta1, beta2 = self.betas
        for index, parameter in enumerate(self.parameters):
            grad = self._gradient(parameter)
            if grad is None:
                continue
            self._steps[index] += 1
            steps, mean, square = self._steps[index], self._means[index], self._squares[index]
            mean[...] = mean + (1.0 - beta1) * (grad - mean)
            square[...] = square * beta2 + (1.0 - beta2) * grad * grad
            step_size = self.lr / (1.0 - beta1**steps)
            root = np.sqrt(square) / (1.0 - beta2**steps) ** 0.5
            parameter.data[...] = parameter.data - step_size * (mean / (root + self.eps))
