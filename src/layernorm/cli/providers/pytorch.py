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
    """`F.layer_norm`, and the operator that its backward runs."""

    name: ClassVar[str] = "torch"
    distribution: ClassVar[str] = "torch"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """For channels first: permute, layer norm, permute, as PyTorch users write it."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        x, weight, bias, _ = tensors_of(problem)
        if not problem.is_channels_first:
            return partial(F.layer_norm, x, (problem.cols,), weight, bias, problem.eps)
        return partial(_forward_permuted, x, weight, bias, problem)

    def backward(self, problem: Problem) -> Call:
        """Call the operator that autograd runs, without autograd."""
        self.require(problem, can_reuse=False)
        return partial(_backward, *_backward_arguments(problem))

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Return arrays that share the tensors' memory; bfloat16 is passed as bits."""
        tensors = result if isinstance(result, tuple) else (result,)
        return tuple(_array(each) for each in tensors)


class TorchCompiled(Torch):
    """The same under torch.compile, compiled for each shape."""

    name: ClassVar[str] = "torch.compile"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        torch._dynamo.config.recompile_limit = COMPILED_SHAPES
        torch._dynamo.config.accumulated_recompile_limit = COMPILED_SHAPES
        try:
            torch.compile(_plus_one)(torch.zeros(8))
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise Unsupported(reason[0] if reason else type(error).__name__) from error

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Compile for this shape; PyTorch keeps what it has compiled."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        x, weight, bias, _ = tensors_of(problem)
        if not problem.is_channels_first:
            compiled = torch.compile(F.layer_norm, dynamic=False)
            return partial(compiled, x, (problem.cols,), weight, bias, problem.eps)
        permuted = torch.compile(_permuted_layer_norm, dynamic=False)
        return partial(
            permuted, x, weight, bias, problem.channels_last, problem.channels_back, problem.eps
        )

    def backward(self, problem: Problem) -> Call:
        """Compile the same operator, which PyTorch decomposes and fuses."""
        self.require(problem, can_reuse=False)
        return partial(torch.compile(_backward, dynamic=False), *_backward_arguments(problem))


class TorchFunction(Torch):
    """Some function of x, weight and bias, and its gradients by autograd."""

    def function(self, problem: Problem) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return y = f(x, weight, bias)."""
        raise NotImplementedError

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Call it without recording a graph."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        x, weight, bias, _ = tensors_of(problem)
        call: Call = torch.no_grad()(partial(self.function(problem), x, weight, bias))
        return call

    def backward(self, problem: Problem) -> Call:
        """Return the call that runs autograd; the forward is done before."""
        self.require(problem, can_reuse=False)
        *given, dy = tensors_of(problem)
        leaves = [each.detach().requires_grad_() for each in given]
        y = self.function(problem)(*leaves)
        return partial(torch.autograd.grad, y, leaves, dy, retain_graph=True)


def _plus_one(x: Tensor) -> Tensor:
    return x + 1


def _forward_permuted(x: Tensor, weight: Tensor, bias: Tensor, problem: Problem) -> Tensor:
    return _permuted_layer_norm(
        x, weight, bias, problem.channels_last, problem.channels_back, problem.eps
    )


def _permuted_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    last: tuple[int, ...],
    back: tuple[int, ...],
    eps: float,
) -> Tensor:
    return F.layer_norm(x.permute(last), weight.shape, weight, bias, eps).permute(back)


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


def tensors_of(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, weight, bias and dy, which share the arrays' memory."""
    x, weight, bias, dy = problem.arrays_of("torch", _tensor)
    return x, weight, bias, dy


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
