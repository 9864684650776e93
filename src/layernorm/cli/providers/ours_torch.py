"""layernorm.torch as a provider."""

from functools import partial
from typing import Any, ClassVar

import torch

from layernorm import _native
from layernorm import torch as front_end
from layernorm.cli.problem import Problem
from layernorm.cli.providers.provider import Call
from layernorm.cli.providers.pytorch import Torch, tensors_of
from layernorm.torch import operators
from layernorm.torch.arguments import Definition, named_axes


class OursTorch(Torch):
    """`layernorm.torch`, called as a user calls it."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """`layer_norm` or `rms_norm`; for channels first, `axis` instead of a permute."""
        self.require(problem, reuse_output=reuse_output, can_reuse=False)
        x, *parameters, _ = tensors_of(problem)
        axis = problem.axis if problem.is_channels_first else None
        norm = getattr(front_end, problem.kind)
        call = partial(norm, x, (problem.cols,), *parameters, problem.eps)
        return call if axis is None else partial(call, axis=axis)

    def backward(self, problem: Problem) -> Call:
        """Call the operator that autograd runs, without autograd."""
        self.require(problem, can_reuse=False)
        centered = problem.kind == "layer_norm"
        x, weight, *biases, dy = tensors_of(problem)
        bias = biases[0] if centered else None
        need = (True, True, centered)
        fast = None
        if not problem.is_channels_first:
            leaf, shape, eps = x.detach().requires_grad_(), (problem.cols,), problem.eps
            fast = _native.torch_try_forward(leaf, weight, bias, shape, eps, centered, False)
        if fast is None:
            axes = named_axes(x, weight.shape, problem.axis)
            definition = Definition(axes, problem.eps, centered)
            _, *statistics = operators.forward(x, weight, bias, definition)
            return partial(operators.backward, dy, x, weight, bias, definition, need, statistics)
        _, saved = fast

        def backward() -> Any:
            with torch.no_grad():
                return _native.torch_try_backward(x, weight, saved, dy, need)[: sum(need)]

        return backward
