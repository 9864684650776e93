"""Time norms with what usually follows or precedes them, fused and as PyTorch's own operations.

    python benchmarks/fused.py [--threads 2] [--sizes 2048x1024,4096x4096] [--kinds adaptive,heads]

Eager PyTorch, interleaved; medians in microseconds. Each kind is timed in three ways: with
PyTorch's operations (the composition), with our norm and PyTorch's for the rest (unfused), and in
one call of ours.

    residual   total = x + residual and layer_norm(total); the gradients of both go back
    adaptive   layer_norm(x) * (1 + scale) + shift, eight samples, a scale and a shift for each
    heads      RMS norm of the queries in a projection that holds keys and values too, 128 columns
    keys       the same of two heads, as grouped queries share them
    each head  the norm of the queries with a weight for each head
    gate       rms_norm(x) * silu(gate)
    gate first rms_norm(x * silu(gate)), as in Mamba2
    quantized  layer_norm(x) in int8 with a scale for each row; no gradient
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import layernorm.torch as ln
from layernorm.cli.bench.timing import interleave

SAMPLES = 8
HEAD = 128

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass
class Kind:
    """One computation in three ways, and its arguments."""

    arguments: tuple[Tensor, ...]
    composition: Function
    unfused: Function
    fused: Function

    def ways(self) -> Iterator[tuple[str, Function]]:
        yield "composition", self.composition
        yield "unfused", self.unfused
        yield "fused", self.fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default="2048x1024,4096x4096", metavar="ROWSxCOLS,...")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="NAME,...")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| kind | size | type | | composition | unfused | fused | of composition | of unfused |")
    print("|---|---|---|---|--:|--:|--:|--:|--:|")
    for name in options.kinds.split(","):
        for size in options.sizes.split(","):
            rows, cols = map(int, size.split("x"))
            for type_name, dtype in TYPES.items():
                kind = KINDS[name](rows, cols, dtype)
                for step, times in measure(kind).items():
                    print(f"| {name} | {size} | {type_name} | {step} | {as_cells(times)} |")


def measure(kind: Kind) -> dict[str, dict[str, float]]:
    """Return microseconds of the forward alone, of the backward alone, and of both in one go."""
    forwards = {name: (lambda way=way: way(*kind.arguments)) for name, way in kind.ways()}
    with torch.no_grad():
        steps = {"forward": interleave(forwards)}
    leaves = [each.detach().requires_grad_() for each in kind.arguments]
    results = {name: as_tuple(way(*leaves)) for name, way in kind.ways()}
    if all(each.requires_grad for each in results["fused"]):
        gradients = [torch.randn(each.shape).to(each.dtype) for each in results["fused"]]

        def backward(of: tuple[Tensor, ...], *, again: bool) -> tuple[Tensor, ...]:
            return torch.autograd.grad(of, leaves, gradients, retain_graph=again)

        steps["backward"] = interleave(
            {name: (lambda of=of: backward(of, again=True)) for name, of in results.items()}
        )
        steps["both"] = interleave(
            {
                name: (lambda way=way: backward(as_tuple(way(*leaves)), again=False))
                for name, way in kind.ways()
            }
        )
    return {
        step: {name: 1e6 * each.median for name, each in times.items()}
        for step, times in steps.items()
    }


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return one result, or several, as a tuple."""
    return results if isinstance(results, tuple) else (results,)


def as_cells(times: dict[str, float]) -> str:
    """Return three times, and how much faster the fused call is than the others."""
    ratios = (times[name] / times["fused"] for name in ("composition", "unfused"))
    return " | ".join(
        [*(f"{each:,.0f}" for each in times.values()), *(f"{each:.2f}x" for each in ratios)]
    )


def residual(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """Layer norm of a sum, which is needed too."""
    x, residual = (torch.randn(rows, cols).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(cols).to(dtype) for _ in range(2))

    def added(norm: Function) -> Function:
        def way(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
            total = x + residual
            return norm(total, (cols,), weight, bias), total

        return way

    def fused(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return ln.layer_norm(x, (cols,), weight, bias, residual=residual)

    norms = torch.nn.functional.layer_norm, ln.layer_norm
    return Kind((x, residual, weight, bias), *map(added, norms), fused)


def adaptive(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """Adaptive layer norm of eight samples."""
    x = torch.randn(SAMPLES, rows // SAMPLES, cols).to(dtype)
    scale, shift = (torch.randn(SAMPLES, 1, cols).to(dtype) for _ in range(2))

    def modulated(norm: Function) -> Function:
        return lambda x, scale, shift: norm(x, (cols,)) * (1 + scale) + shift

    def fused(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return ln.layer_norm(x, (cols,), scale, shift, zero_centered_weight=True)

    norms = torch.nn.functional.layer_norm, ln.layer_norm
    return Kind((x, scale, shift), *map(modulated, norms), fused)


def heads(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """RMS norm of queries that are a third of each row of a projection."""
    return _part(rows, cols, dtype, torch.randn(HEAD).to(dtype), cols // HEAD)


def keys(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """RMS norm of two heads of such a projection."""
    return _part(rows, cols, dtype, torch.randn(HEAD).to(dtype), 2)


def each_head(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """RMS norm of the queries with a weight for each head."""
    heads = cols // HEAD
    return _part(rows, cols, dtype, torch.randn(heads, HEAD).to(dtype), heads)


def _part(rows: int, cols: int, dtype: torch.dtype, weight: Tensor, heads: int) -> Kind:
    projected = torch.randn(rows, 3 * cols).to(dtype)
    part = projected[:, : heads * HEAD].unflatten(-1, (-1, HEAD))
    of_last = weight.dim() == 1

    def composition(part: Tensor, weight: Tensor) -> Tensor:
        if of_last:
            return torch.nn.functional.rms_norm(part, (HEAD,), weight, 1e-6)
        return torch.nn.functional.rms_norm(part, (HEAD,), None, 1e-6) * weight

    def unfused(part: Tensor, weight: Tensor) -> Tensor:
        part = part.contiguous()
        if of_last:
            return ln.rms_norm(part, (HEAD,), weight, 1e-6)
        return ln.rms_norm(part, (HEAD,), None, 1e-6) * weight

    def fused(part: Tensor, weight: Tensor) -> Tensor:
        return ln.rms_norm(part, (HEAD,), weight, 1e-6)

    return Kind((part, weight), composition, unfused, fused)


def gate(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """RMS norm times an activated gate."""
    return _gated(rows, cols, dtype, norm_before_gate=True)


def gate_first(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """RMS norm of a product with an activated gate."""
    return _gated(rows, cols, dtype, norm_before_gate=False)


def _gated(rows: int, cols: int, dtype: torch.dtype, *, norm_before_gate: bool) -> Kind:
    x, gate = (torch.randn(rows, cols).to(dtype) for _ in range(2))
    weight = torch.randn(cols).to(dtype)

    def with_product(norm: Function) -> Function:
        def way(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
            act = torch.nn.functional.silu(gate)
            if norm_before_gate:
                return norm(x, (cols,), weight, 1e-6) * act
            return norm(x * act, (cols,), weight, 1e-6)

        return way

    def fused(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return ln.rms_norm(x, (cols,), weight, 1e-6, gate=gate, norm_before_gate=norm_before_gate)

    norms = torch.nn.functional.rms_norm, ln.rms_norm
    return Kind((x, gate, weight), *map(with_product, norms), fused)


def quantized(rows: int, cols: int, dtype: torch.dtype) -> Kind:
    """Layer norm in int8, with a scale for each row."""
    x = torch.randn(rows, cols).to(dtype)
    weight, bias = (torch.randn(cols).to(dtype) for _ in range(2))

    def rounded(norm: Function) -> Function:
        def way(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
            y = norm(x, (cols,), weight, bias)
            scales = (y.abs().amax(-1, keepdim=True).float() / 127).clamp(min=1e-30)
            return (y / scales).round().clamp(-128, 127).to(torch.int8), scales

        return way

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return ln.quantized_layer_norm(x, (cols,), weight, bias)

    norms = torch.nn.functional.layer_norm, ln.layer_norm
    return Kind((x, weight, bias), *map(rounded, norms), fused)


KINDS = {
    "residual": residual,
    "adaptive": adaptive,
    "heads": heads,
    "keys": keys,
    "each head": each_head,
    "gate": gate,
    "gate first": gate_first,
    "quantized": quantized,
}


if __name__ == "__main__":
    main()
