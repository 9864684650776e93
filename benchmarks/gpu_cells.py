"""What `gpu.py` measures, in a process of its own: after a CUDA error nothing more runs in one."""

import contextlib
import functools
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from gpu_checks import checks, error, words
from gpu_problems import Cell, Norm, call, make
from torch import Tensor

# Largest error that counts as right, in units in the last place of the type at the result's size.
RIGHT = {"float32": 32, "bfloat16": 2, "float16": 2}

# Providers that are measured with a residual or a gate.
_FUSING = ("layernorm", "aten", "torch.compile")


def work(answers: Connection, cells: list[Cell], dry_run: bool, rounds: int) -> None:
    """Send (cell, results) for each cell, or (None, reason) if none can be measured.

    Ends early after a CUDA error.
    """
    try:
        with providers(dry_run=dry_run) as norms:
            for cell in cells:
                try:
                    found = _measure(cell, norms, dry_run, rounds)
                except Exception as problem:
                    found = {"cannot": words(problem)}
                answers.send((cell, found))
                if not dry_run and _is_broken():
                    return
    except Exception:
        answers.send((None, traceback.format_exc()))


def _is_broken() -> bool:
    """Tell whether an error has left this process without a GPU."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def warm_up(cell: Cell) -> None:
    """Let Triton compile what the cell needs, into its cache on the disk, for other processes."""
    with providers(dry_run=False) as norms:
        for name in ("layernorm", "loop", "liger"):
            if name in norms and _takes_part(name, cell):
                given = make(cell, "cuda", seed=0)
                call(cell._replace(work="forward"), norms[name], given)  # without statistics
                call(cell._replace(work="both"), norms[name], given)


def machine() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "second_level_cache": properties.L2_cache_size,
        "memory": properties.total_memory,
        "cuda": torch.version.cuda,
    }


@contextlib.contextmanager
def providers(*, dry_run: bool) -> Iterator[dict[str, Norm]]:
    from gpu_loop import Loop

    import layernorm.torch as ours
    from layernorm.torch.gpu import operators as gpu

    def aten(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Any:
        if gate is not None:
            return F.layer_norm(x, weight.shape, weight, bias) * F.silu(gate)
        if residual is None:
            return F.layer_norm(x, weight.shape, weight, bias)
        total = x + residual
        return F.layer_norm(total, weight.shape, weight, bias), total

    def our_own(x: Tensor, weight: Tensor, bias: Tensor, **beside: Tensor) -> Any:
        return ours.layer_norm(x, weight.shape, weight, bias, axis=-1, **beside)

    norms: dict[str, Norm] = {"layernorm": our_own, "aten": aten, "loop": Loop.apply}
    if dry_run:  # our GPU kernels, interpreted, in place of those for the CPU
        library = gpu.implement("layernorm", "cpu")
        yield norms
        library._destroy()
        return
    norms["torch.compile"] = torch.compile(aten, dynamic=False)
    with contextlib.suppress(Exception):  # their requirements may be missing too
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        norms["liger"] = lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, 1e-5)
    with contextlib.suppress(Exception):
        from quack.rmsnorm import layernorm_fwd  # no backward; asks for a float32 weight

        norms["quack"] = lambda x, weight, bias: layernorm_fwd(
            x, weight.float(), bias.float(), eps=1e-5
        )
    yield norms


def _measure(cell: Cell, norms: dict[str, Norm], dry_run: bool, rounds: int) -> dict[str, Any]:
    device = "cpu" if dry_run else "cuda"
    if cell.work == "check":
        return checks(cell, norms["layernorm"], device)
    norms = {name: norm for name, norm in norms.items() if _takes_part(name, cell)}
    if cell.with_compiler:
        torch._dynamo.reset()  # it stops compiling after a few shapes
    given = make(cell, device, seed=0)
    found: dict[str, dict[str, Any]] = {name: {} for name in norms}
    for name, norm in norms.items():
        try:
            found[name]["error"] = error(cell, call(cell, norm, given), given)
        except Exception as problem:  # a peer that fails is a result too
            found[name]["cannot"] = words(problem)
        else:
            found[name]["wrong"] = not found[name]["error"] <= RIGHT[cell.dtype]
    if not dry_run:
        _time(cell, norms, found, rounds)
    return found


def _takes_part(name: str, cell: Cell) -> bool:
    if name in ("torch.compile", "quack") and not cell.with_compiler:
        return False
    if name == "loop" and cell.cols <= 16384:  # not long rows
        return False
    return not cell.is_fused or name in _FUSING


def _time(
    cell: Cell, norms: dict[str, Norm], found: dict[str, dict[str, Any]], rounds: int
) -> None:
    """Time the providers in turns, and add medians and spreads, in microseconds."""
    size = cell.useful_bytes
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(1, min(32, -(-3 * cache // size)))
    repeats = max(20, min(200, 2**30 // size))
    # All on one stream: autograd runs a backward on the stream of its forward, and a graph captures
    # its own stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        sets = [make(cell, "cuda", seed) for seed in range(count)]
        runs: dict[str, list[Callable[[], Any]]] = {}
        for name, norm in norms.items():
            if "cannot" not in found[name]:
                ys = [each.forward(norm) if cell.work == "backward" else None for each in sets]
                pairs = zip(sets, ys, strict=True)
                runs[name] = [functools.partial(call, cell, norm, each, y) for each, y in pairs]
        halves = [
            [torch.empty(size // 2, dtype=torch.uint8, device="cuda") for _ in range(2)]
            for _ in range(count)
        ]
        runs["copy"] = [functools.partial(one.copy_, other) for one, other in halves]
        found["copy"] = {}
        times: dict[tuple[str, str], list[float]] = {}
        graphs = {}
        for name, calls in runs.items():
            try:
                graphs[name] = graph_of(calls, repeats, stream)
            except RuntimeError as problem:  # not every provider can be captured
                found[name]["no_graph"] = words(problem)
        for _ in range(rounds):
            for name, calls in runs.items():
                if name in graphs:
                    times.setdefault((name, "device"), []).append(replay(*graphs[name]))
                times.setdefault((name, "eager"), []).append(_wall_time(calls, repeats))
    for (name, kind), values in times.items():
        found[name][kind] = statistics.median(values)
        found[name][f"{kind}_spread"] = max(values) - min(values)
    for each in found.values():
        if "device" in each and "device" in found["copy"]:
            each["of_copy"] = found["copy"]["device"] / each["device"]


def graph_of(
    calls: list[Callable[[], Any]], repeats: int, stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, int]:
    for each in calls:
        each()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    count = -(-repeats // len(calls)) * len(calls)
    with torch.cuda.graph(graph, stream=stream):
        for at in range(count):
            calls[at % len(calls)]()
    graph.replay()
    return graph, count


def replay(graph: torch.cuda.CUDAGraph, count: int) -> float:
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
