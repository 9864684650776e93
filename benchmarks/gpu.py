"""The GPU benchmark: check every provider against float64, then time it beside a copy.

    python benchmarks/gpu.py [--only words] [--rounds 5] [--results FOLDER]
    TRITON_INTERPRET=1 python benchmarks/gpu.py --dry-run

Providers: ours, PyTorch's own (ATen), torch.compile, and Liger and quack where they are installed.
Two timings: `device`, a CUDA graph of calls on inputs rotated through three times the second-level
cache; `eager`, wall time a call. Medians over rounds in which the providers take turns. Useful
bytes: 2 rows cols itemsize forward, 3 backward. A provider whose result is wrong is timed and
marked. --dry-run does the checks on small problems on the CPU and times nothing.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HERE = Path(__file__).parent
COLS = (256, 512, 768, 769, 1023, 1024, 1280, 2048, 4096, 5120, 7168, 8192, 12288, 16384)
COLS += (32768, 65536)
ROWS = (1, 8, 64, 256, 1024, 8192, 32768, 131072)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_ELEMENTS = 2**29
# Largest error that counts as right, in units in the last place of the type at the result's size.
RIGHT = {"float32": 32, "bfloat16": 2, "float16": 2}


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor


class Cell(NamedTuple):
    work: str  # forward, backward, both
    dtype: str
    rows: int
    cols: int

    @property
    def name(self) -> str:
        return f"{self.work} {self.dtype} {self.rows}x{self.cols}"

    @property
    def useful_bytes(self) -> int:
        passes = {"forward": 2, "backward": 3, "both": 5}[self.work]
        return passes * self.rows * self.cols * DTYPES[self.dtype].itemsize


Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    options = _options()
    device = "cpu" if options.dry_run else "cuda"
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit(
            "no GPU here: add --dry-run to check on the CPU, or run where there is one"
        )
    with providers(dry_run=options.dry_run) as norms:
        cells = [cell for cell in plan(dry_run=options.dry_run) if options.only in cell.name]
        results = [measure(cell, norms, device, options) for cell in cells]
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": "none: dry run" if options.dry_run else torch.cuda.get_device_name(),
        "commit": _commit(),
        "versions": _versions(),
        "cells": results,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    name = "gpu-dry-run" if options.dry_run else f"gpu-{report['date'][:10]}"
    path = options.results / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(path)
    if not options.dry_run:
        print(plot(results, path.with_suffix(".png")))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="check, on the CPU; time nothing")
    parser.add_argument("--only", default="", help="cells whose name has these words")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each provider")
    parser.add_argument("--results", type=Path, default=HERE / "results", metavar="FOLDER")
    return parser.parse_args()


def plan(*, dry_run: bool) -> Iterator[Cell]:
    cols, rows = ((64, 769), (1, 5)) if dry_run else (COLS, ROWS)
    for work, dtype, r, c in itertools.product(("forward", "backward", "both"), DTYPES, rows, cols):
        if r * c <= MOST_ELEMENTS:
            yield Cell(work, dtype, r, c)


@contextlib.contextmanager
def providers(*, dry_run: bool) -> Iterator[dict[str, Norm]]:
    import layernorm.torch as ours
    from layernorm.torch import gpu

    def aten(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias)

    def our_own(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ours.layer_norm(x, weight.shape, weight, bias, axis=-1)

    norms = {"layernorm": our_own, "aten": aten}
    if dry_run:  # our GPU kernels, interpreted, in place of those for the CPU
        library = gpu.implement("layernorm", "cpu")
        yield norms
        library._destroy()
        return
    norms["torch.compile"] = torch.compile(aten, dynamic=False)
    with contextlib.suppress(ImportError):
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        norms["liger"] = lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, 1e-5)
    with contextlib.suppress(ImportError):
        from quack.rmsnorm import layernorm_fwd  # no backward; asks for a float32 weight

        norms["quack"] = lambda x, weight, bias: layernorm_fwd(x, weight.float(), eps=1e-5) + bias
    yield norms


def make(cell: Cell, device: str, seed: int) -> Problem:
    generator = torch.Generator(device=device).manual_seed(seed)
    options: dict[str, Any] = {"generator": generator, "device": device}
    dtype = DTYPES[cell.dtype]
    x, dy = (torch.randn(cell.rows, cell.cols, **options).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(cell.cols, **options).to(dtype) for _ in range(2))
    return Problem(*(each.requires_grad_() for each in (x, weight, bias)), dy)


def call(cell: Cell, norm: Norm, given: Problem, y: Tensor | None = None) -> Any:
    """Do the work; a backward works on the y of a forward before."""
    inputs = given[:3]
    if cell.work == "forward":
        with torch.no_grad():
            return norm(*inputs)
    y = norm(*inputs) if y is None else y
    return torch.autograd.grad(y, inputs, given.dy, retain_graph=cell.work == "backward")


def error(cell: Cell, norm: Norm, given: Problem) -> float:
    """Return the largest distance from float64, in units in the last place of the largest value."""
    wide = Problem(*(each.detach().double().requires_grad_() for each in given))

    def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d * (d.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias

    got, right = (call(cell, f, g) for f, g in ((norm, given), (exact, wide)))
    pairs = [(got, right)] if cell.work == "forward" else zip(got, right, strict=True)
    epsilon = torch.finfo(DTYPES[cell.dtype]).eps
    worst = 0.0
    for mine, theirs in pairs:
        scale = epsilon * max(float(theirs.detach().abs().max()), 1e-30)
        worst = max(worst, float((mine.detach().double() - theirs).abs().max()) / scale)
    return worst


def measure(
    cell: Cell, norms: dict[str, Norm], device: str, options: argparse.Namespace
) -> dict[str, Any]:
    given = make(cell, device, seed=0)
    found: dict[str, dict[str, Any]] = {name: {} for name in norms}
    for name, norm in norms.items():
        try:
            found[name]["error"] = error(cell, norm, given)
        except Exception as problem:  # a peer that cannot do it is a result too
            found[name]["cannot"] = f"{type(problem).__name__}: {problem}"[:200]
        else:
            found[name]["wrong"] = not found[name]["error"] <= RIGHT[cell.dtype]
    if not options.dry_run:
        _time(cell, norms, found, options.rounds)
    print(cell.name, {name: _short(each) for name, each in found.items()}, flush=True)
    return {**cell._asdict(), "providers": found}


def _short(found: dict[str, Any]) -> str:
    if "cannot" in found:
        return found["cannot"][:60]
    mark = " wrong" if found.get("wrong") else ""
    times = "".join(f" {key} {found[key]:.1f} us" for key in ("device", "eager") if key in found)
    return f"{found.get('error', 0):.2g} ulp{mark}{times}"


def _time(
    cell: Cell, norms: dict[str, Norm], found: dict[str, dict[str, Any]], rounds: int
) -> None:
    """Let the providers take turns; leave medians and spreads, in microseconds."""
    size = cell.useful_bytes
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    sets = [make(cell, "cuda", seed) for seed in range(max(1, min(64, -(-3 * cache // size))))]
    repeats = max(5, min(200, 2**30 // size))
    samples: dict[str, dict[str, list[float]]] = {}
    runs = {}
    for name, norm in norms.items():
        if "cannot" in found[name]:
            continue
        ys = [norm(*each[:3]) if cell.work == "backward" else None for each in sets]
        runs[name] = [
            lambda norm=norm, given=given, y=y: call(cell, norm, given, y)
            for given, y in zip(sets, ys, strict=True)
        ]
    source = [torch.empty(size // 2, dtype=torch.uint8, device="cuda") for _ in range(2)]
    runs["copy"] = [lambda: source[0].copy_(source[1])]
    found["copy"] = {}
    for _ in range(rounds):
        for name, calls in runs.items():
            taken = samples.setdefault(name, {"device": [], "eager": []})
            with contextlib.suppress(RuntimeError):  # not every provider can be captured
                taken["device"].append(_graph_time(calls, repeats))
            taken["eager"].append(_wall_time(calls, repeats))
    for name, kinds in samples.items():
        for kind, values in kinds.items():
            if values:
                found[name][kind] = statistics.median(values)
                found[name][f"{kind}_spread"] = max(values) - min(values)
    for each in found.values():
        if "device" in each:
            each["of_copy"] = found["copy"]["device"] / each["device"]


def _graph_time(calls: list[Callable[[], Any]], repeats: int) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for each in calls:
            each()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    count = -(-repeats // len(calls)) * len(calls)
    with torch.cuda.graph(graph):
        for at in range(count):
            calls[at % len(calls)]()
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1000 / count


def _wall_time(calls: list[Callable[[], Any]], repeats: int) -> float:
    for each in calls:
        each()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for at in range(repeats):
        calls[at % len(calls)]()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats * 1e6


def plot(results: list[dict[str, Any]], path: Path) -> Path:
    """Draw what part of a copy's speed each provider has, by width, at the largest sizes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    works = ("forward", "backward")
    figure, axes = plt.subplots(len(works), len(DTYPES), figsize=(14, 8), sharey=True)
    for (row, work), (col, dtype) in itertools.product(enumerate(works), enumerate(DTYPES)):
        lines: dict[str, list[tuple[int, float]]] = {}
        for cell in results:
            fits = (cell["work"], cell["dtype"]) == (work, dtype) and cell["rows"] == 8192
            for name, each in cell["providers"].items() if fits else ():
                if "of_copy" in each and name != "copy":
                    lines.setdefault(name, []).append((cell["cols"], each["of_copy"]))
        for name, points in lines.items():
            axes[row][col].semilogx(*zip(*sorted(points), strict=True), label=name, marker=".")
        axes[row][col].set_title(f"{work} {dtype}, 8192 rows")
        axes[row][col].set_xlabel("columns")
        axes[row][col].set_ylabel("speed, copy = 1")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)
    return path


def _commit() -> str:
    command = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for name in ("layernorm", "torch", "triton", "liger-kernel", "quack-kernels"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    main()
