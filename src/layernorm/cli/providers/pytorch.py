"""PyTorch on the CPU, eager and compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from layernorm.cli.problem import Array, Problem, number_type
from layernorm.cli.providers.provider import Call, Provider, Unsupported

Tensor: TypeAlias = torch.Tensor

COMPILED_SHAPES = 1000  # by default, PyTorch stops compiling after 8


class Torch(Provider):
    """`F.layer_norm`, and the operator that its backward runs; `F.rms_norm`, and autograd.

    On the CPU, PyTorch composes RMS norm of several operators, so its backward is autograd's.
    """

    name: ClassVar[str] = "torch"
    distribution: ClassVar[str] = "torch"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    def run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as this provider runs it."""
        return function

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """For channels first: permute, norm, permute, as PyTorch users write it."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        *inputs, _ = tensors_of(problem)
        return self._norm(problem, *inputs)

    def backward(self, problem: Problem) -> Call:
        """Call the operator that autograd runs, without autograd; for RMS norm, run autograd."""
        self.require(problem, can_reuse=False)
        if problem.kind == "layer_norm":
            return partial(self.run(_backward), *_backward_arguments(problem))
        *inputs, dy = tensors_of(problem)
        leaves = [each.detach().requires_grad_() for each in inputs]
        return _gradients(self._norm(problem, *leaves)(), leaves, dy)

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Return arrays that share the tensors' memory; bfloat16 is passed as bits."""
        tensors = result if isinstance(result, tuple) else (result,)
        return tuple(_array(each) for each in tensors)

    def _norm(self, problem: Problem, x: Tensor, *parameters: Tensor) -> Call:
        norm = getattr(F, problem.kind)
        if not problem.is_channels_first:
            return partial(self.run(norm), x, (problem.cols,), *parameters, problem.eps)
        last, back = problem.channels_last, problem.channels_back
        return partial(self.run(_permuted), norm, x, parameters, last, back, problem.eps)


class TorchCompiled(Torch):
    """The same under torch.compile, compiled for each shape."""

    name: ClassVar[str] = "torch.compile"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        torch._dynamo.config.accumulated_recompile_limit = COMPILED_SHAPES
        try:
            self.run(_plus_one)(torch.zeros(8))
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise Unsupported(reason[0] if reason else type(error).__name__) from error

    def run(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile the function for each shape; PyTorch keeps what it has compiled."""
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False)
        return compiled


class TorchFunction(Torch):
    """Some function of x and the parameters, and its gradients by autograd."""

    def function(self, problem: Problem) -> Callable[..., Tensor]:
        """Return y = f(x, *parameters)."""
        raise NotImplementedError

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Call it without recording a graph."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        *inputs, _ = tensors_of(problem)
        call: Call = torch.no_grad()(partial(self.function(problem), *inputs))
        return call

    def backward(self, problem: Problem) -> Call:
        """Return the call that runs autograd; the forward is done before."""
        self.require(problem, can_reuse=False)
        *inputs, dy = tensors_of(problem)
        leaves = [each.detach().requires_grad_() for each in inputs]
        return _gradients(self.function(problem)(*leaves), leaves, dy)


def _plus_one(x: Tensor) -> Tensor:
    return x + 1


def _permuted(
    norm: Callable[..., Tensor],
    x: Tensor,
    parameters: tuple[Tensor, ...],
    last: tuple[int, ...],
    back: tuple[int, ...],
    eps: float,
) -> Tensor:
    return norm(x.permute(last), parameters[0].shape, *parameters, eps).permute(back)


def _gradients(y: Tensor, leaves: list[Tensor], dy: Tensor) -> Call:
    return partial(torch.autograd.grad, y, leaves, dy, retain_graph=True)


def _backward_arguments(problem: Problem) -> tuple[Any, ...]:
    x, weight, bias, dy = tensors_of(problem)
    back: tuple[int, ...] | None = None
    if problem.is_channels_first:
        x, dy = x.permute(problem.channels_last), dy.permute(problem.channels_last)
        back = problem.channels_back
    _, mean, rstd = torch.native_layer_norm(x, [problem.cols], weight, bias, problem.eps)
    return dy, x, mean, rstd, weight, bias, back


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    back: tuple[int, ...] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy, x, list(weight.shape), mean, rstd, weight, bias, [True, True, True]
    )
    return dx if back is None else dx.permute(back), dweight, dbias


def tensors_of(problem: Problem) -> tuple[Tensor, ...]:
    """Return x, the parameters and dy, which share the arrays' memory."""
    return problem.arrays_of("torch", _tensor)


def _tensor(array: Array) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        bits: Array = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(number_type("bfloat16"))
    array: Array = tensor.numpy()
    return array
