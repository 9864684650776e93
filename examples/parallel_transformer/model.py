"""The model, as Llama's: RMS norm, attention, RMS norm, gated perceptron."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layernorm.torch as ln

HIDDEN, HEADS, INNER, BLOCKS = 64, 4, 128, 2
HEAD = HIDDEN // HEADS


class Attention(nn.Module):
    """Causal attention, with rotary embeddings of the places."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the heads read, of x's shape."""
        # A process has some of the heads, so their number is not HEADS.
        q, k, v = (each(x).unflatten(-1, (-1, HEAD)) for each in (self.q, self.k, self.v))
        q, k, v = (each.transpose(1, 2) for each in (rotated(q), rotated(k), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


def rotated(x: Tensor) -> Tensor:
    """Rotate pairs of channels of x (batch, time, heads, channels), more the later the time."""
    first, second = x.chunk(2, -1)
    channels = first.shape[-1]
    frequencies = 100 ** (-torch.arange(channels) / channels)
    angles = torch.arange(x.shape[1])[:, None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class Perceptron(nn.Module):
    """Two layers, of which the first is gated."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return down(silu(gate(x)) * up(x))."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and perceptron, each after a norm of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = ln.RMSNorm(HIDDEN), Attention()
        self.norm2, self.perceptron = ln.RMSNorm(HIDDEN), Perceptron()

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream with what both add to it."""
        branch = self.attention(self.norm1(stream))
        # Adds first. By keyword, because SequenceParallel hands on one positional argument.
        y, stream = self.norm2(branch, residual=stream)
        return stream + self.perceptron(y)


class Transformer(nn.Module):
    """Predicts the next character."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = ln.RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, characters, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scores (batch, time, characters) of what follows tokens (batch, time)."""
        stream = self.embedding(tokens)
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream))
