"""Time blocks of transformers as they are usually written, and with our fused norms.

    python benchmarks/blocks.py [--threads 2] [--width 512] [--tokens 1024]

Eager PyTorch, float32 and bfloat16, interleaved; medians in microseconds of a forward without
gradients, and of a forward with its backward. `norms` is the same without the attention and the
perceptron, which take most of a block's time and are PyTorch's in each.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import layernorm.torch as ln
from layernorm.cli.bench.timing import interleave

SAMPLES = 4
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Branches = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Attention(nn.Module):
    """Self-attention of all tokens of a sample."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the stream."""
        parts = self.projection(x).unflatten(-1, (3, self.heads, 64)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*parts)
        return self.output(attended.transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """Mixes each channel over four tokens, and not with later ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 4, groups=width, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the norm is given."""
        return self.convolution(x.mT)[..., : x.shape[1]].mT.contiguous()


def perceptron(width: int) -> nn.Module:
    """Return the usual two layers."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class PreNorm(nn.Module):
    """A block of GPT-2, ViT: each branch normalizes the stream and adds to it."""

    def __init__(self, width: int, branches: Branches) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.perceptron = branches

    def forward(self, branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last branch and the stream to which it is to be added."""
        stream = stream + branch
        stream = stream + self.attention(self.norm1(stream))
        return self.perceptron(self.norm2(stream)), stream


class FusedPreNorm(PreNorm):
    """The same: each norm adds the last branch to the stream."""

    def __init__(self, width: int, branches: Branches) -> None:
        super().__init__(width, branches)
        self.norm1, self.norm2 = ln.LayerNorm(width), ln.LayerNorm(width)

    def forward(self, branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last branch and the stream to which it is to be added."""
        y, stream = self.norm1(branch, stream)
        y, stream = self.norm2(self.attention(y), stream)
        return self.perceptron(y), stream


class Adaptive(nn.Module):
    """A block of DiT: a condition scales, shifts and gates each branch."""

    def __init__(self, width: int, branches: Branches) -> None:
        super().__init__()
        self.width = (width,)
        self.attention, self.perceptron = branches

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor]:
        """Return the stream; the condition has six vectors for each sample."""
        scale1, shift1, gate1, scale2, shift2, gate2 = condition[:, :, None].unbind(1)
        norm = nn.functional.layer_norm
        x = x + gate1 * self.attention(norm(x, self.width) * (1 + scale1) + shift1)
        x = x + gate2 * self.perceptron(norm(x, self.width) * (1 + scale2) + shift2)
        return (x,)


class FusedAdaptive(Adaptive):
    """The same: each modulated norm is one call, and the second adds the gated branch first."""

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor]:
        """Return the stream; the condition has six vectors for each sample."""
        scale1, shift1, gate1, scale2, shift2, gate2 = condition[:, :, None].unbind(1)
        y = ln.layer_norm(x, self.width, scale1, shift1, zero_centered_weight=True)
        branch = gate1 * self.attention(y)
        y, x = ln.layer_norm(
            branch, self.width, scale2, shift2, residual=x, zero_centered_weight=True
        )
        return (x + gate2 * self.perceptron(y),)


class Mixer(nn.Module):
    """The end of Mamba2's mixer: a norm of the gated result of the scan, and the output."""

    def __init__(self, width: int, branches: Branches) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.scan, self.output = branches

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor]:
        """Return the mixer's result; in 16 bits the norm is taken in float32, as in Mamba2."""
        y = self.scan(x).float() * nn.functional.silu(gate.float())
        y = nn.functional.rms_norm(y, self.norm.normalized_shape, None, self.norm.eps)
        return (self.output(self.norm.weight * y.to(x.dtype)),)


class FusedMixer(Mixer):
    """The same: gate and norm are one call."""

    def __init__(self, width: int, branches: Branches) -> None:
        super().__init__(width, branches)
        self.norm = ln.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor]:
        """Return the mixer's result."""
        return (self.output(self.norm(self.scan(x), gate=gate, norm_before_gate=False)),)


BLOCKS = {
    "pre-norm": (PreNorm, FusedPreNorm),
    "DiT": (Adaptive, FusedAdaptive),
    "Mamba2": (Mixer, FusedMixer),
}


def branches_of(name: str, width: int) -> Branches:
    """Return what comes between the norms; for Mamba2's scan a causal convolution stands in."""
    if name == "Mamba2":
        return Convolution(width), nn.Linear(width, width // 2)
    return Attention(width), perceptron(width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=1024, help="of all four samples")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    width, tokens = options.width, options.tokens // SAMPLES
    print("| block | type | | usual | fused | ratio |")
    print("|---|---|---|--:|--:|--:|")
    for name, kinds in BLOCKS.items():
        for part, branches in (
            ("whole", branches_of(name, width)),
            ("norms", (nn.Identity(), nn.Identity())),
        ):
            for type_name, dtype in TYPES.items():
                blocks = [kind(width, branches).to(dtype) for kind in kinds]
                shape = (SAMPLES, tokens, width)
                for step, times in measure(name, blocks, shape, dtype).items():
                    usual, fused = (1e6 * times[way].median for way in ("usual", "fused"))
                    cells = f"{usual:,.0f} | {fused:,.0f} | {usual / fused:.2f}x"
                    print(f"| {name}, {part} | {type_name} | {step} | {cells} |")


def measure(
    name: str, blocks: list[nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, Any]:
    """Return the times of both blocks, after a check that their results are the same."""
    second = (shape[0], 6, shape[2]) if name == "DiT" else shape
    inputs = [torch.randn(each).to(dtype).requires_grad_() for each in (shape, second)]
    results = [block(*inputs) for block in blocks]
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    for usual, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, usual, rtol=tolerance, atol=tolerance)

    def forward(block: nn.Module) -> None:
        with torch.no_grad():
            block(*inputs)

    def both(block: nn.Module) -> None:
        outputs = block(*inputs)
        wanted = [*inputs, *block.parameters()]
        torch.autograd.grad(outputs, wanted, [torch.ones_like(each) for each in outputs])

    ways = dict(zip(("usual", "fused"), blocks, strict=True))
    return {
        step: interleave({way: partial(run, block) for way, block in ways.items()})
        for step, run in (("forward", forward), ("forward and backward", both))
    }


if __name__ == "__main__":
    main()
