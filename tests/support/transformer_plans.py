"""A small transformer as Llama's, and plans by which PyTorch spreads it over processes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

VOCABULARY, HEADS, HEAD, INNER, BLOCKS = 24, 4, 8, 40, 2
HIDDEN = 30  # 8, 8, 8 and 6 of them on four processes
TOKENS = 12

MakeNorm = Callable[[int], nn.Module]


class Attention(nn.Module):
    """Causal; with a norm of each head's queries and keys, as Qwen3's."""

    def __init__(self, make_norm: MakeNorm) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(HIDDEN, HEADS * HEAD, bias=False) for _ in range(3))
        self.q_norm, self.k_norm = make_norm(HEAD), make_norm(HEAD)
        self.o = nn.Linear(HEADS * HEAD, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # A process has some of the heads.
        q, k, v = (each(x).unflatten(-1, (-1, HEAD)) for each in (self.q, self.k, self.v))
        q, k, v = (each.transpose(1, 2) for each in (self.q_norm(q), self.k_norm(k), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """With `fuses`, the second norm, one of ours, adds the branch to the stream itself."""

    def __init__(self, make_norm: MakeNorm, *, fuses: bool) -> None:
        super().__init__()
        self.norm1, self.attention = make_norm(HIDDEN), Attention(make_norm)
        self.norm2, self.perceptron = make_norm(HIDDEN), Perceptron()
        self.fuses = fuses

    def forward(self, stream: Tensor) -> Tensor:
        branch = self.attention(self.norm1(stream))
        if self.fuses:  # by keyword: PyTorch's SequenceParallel passes on one argument only
            y, stream = self.norm2(branch, residual=stream)
        else:
            stream = stream + branch
            y = self.norm2(stream)
        return stream + self.perceptron(y)


class Transformer(nn.Module):
    """From tokens (batch, time) to scores (batch, time, vocabulary)."""

    def __init__(self, make_norm: MakeNorm, *, fuses: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(Block(make_norm, fuses=fuses) for _ in range(BLOCKS))
        self.norm = make_norm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "norm" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embedding(tokens)
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))


# ---- plans


class ShardedParameters(ParallelStyle):
    """For a norm: weight and bias are sharded as the last axis of its x."""

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        def shard(name: str, module: nn.Module, mesh: Any) -> None:
            for key, parameter in module.named_parameters():
                sharded = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
                module.register_parameter(key, nn.Parameter(sharded))

        return distribute_module(module, device_mesh, shard)


def plan(axis: int, norm: ParallelStyle) -> dict[str, ParallelStyle]:
    """Shard the stream along axis 1, the time, or along axis 2, the hidden axis."""
    stream = Shard(axis)
    row_wise = RowwiseParallel(output_layouts=stream, use_local_output=False)
    of_heads = SequenceParallel(sequence_dim=2, use_local_output=True)
    of_block = {
        "norm1": norm,
        # Gathered once, and not for each of q, k and v.
        "attention": PrepareModuleInput(
            input_layouts=stream, desired_input_layouts=Replicate(), use_local_output=False
        ),
        **{f"attention.{each}": ColwiseParallel() for each in ("q", "k", "v")},
        **{f"attention.{each}_norm": of_heads for each in ("q", "k")},
        "attention.o": row_wise,
        "norm2": norm,
        "perceptron.gate": ColwiseParallel(input_layouts=stream),
        "perceptron.up": ColwiseParallel(input_layouts=stream),
        "perceptron.down": row_wise,
    }
    rows = {"input_layouts": Replicate(), "output_layouts": stream, "use_local_output": False}
    return {
        "embedding": RowwiseParallel(**rows) if axis == 1 else ColwiseParallel(**rows),
        **{f"blocks.{n}.{key}": each for n in range(BLOCKS) for key, each in of_block.items()},
        "norm": norm,
        "head": ColwiseParallel(input_layouts=stream, output_layouts=Replicate()),
    }


PLANS: dict[str, Callable[[], dict[str, ParallelStyle]]] = {
    "time": lambda: plan(1, SequenceParallel()),
    "hidden": lambda: plan(2, SequenceParallel(sequence_dim=-1)),
    "hidden, parameters too": lambda: plan(2, ShardedParameters()),
}


def parallelized(model: nn.Module, mesh: Any, name: str) -> nn.Module:
    return parallelize_module(model, mesh, PLANS[name]())


def whole(given: Tensor) -> Tensor:
    return given.full_tensor() if isinstance(given, DTensor) else given
