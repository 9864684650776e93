"""What `gpu.py` measures, in a process of its own: after a CUDA error nothing more runs in one."""

import contextlib
import functools
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest error that counts as right, in units in the last place of the type at the result's size.
RIGHT = {"float32": 32, "bfloat16": 2, "float16": 2}

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cell(NamedTuple):
    work: str  # check, forward, backward, both
    dtype: str
    rows: int
    cols: int
    with_compiler: bool = False  # torch.compile takes seconds a cell

    @property
    def name(self) -> str:
        return f"{self.work} {self.dtype} {self.rows}x{self.cols}"

    @property
    def useful_bytes(self) -> int:
        passes = {"forward": 2, "backward": 3, "both": 5}[self.work]
        return passes * self.rows * self.cols * DTYPES[self.dtype].itemsize


class Problem(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor


def work(answers: Connection, cells: list[Cell], dry_run: bool, rounds: int) -> None:
    """Send (cell, what was found) for each cell; (None, why) where none can be measured.

    Ends early after a CUDA error.
    """
    try:
        with providers(dry_run=dry_run) as norms:
            for cell in cells:
                try:
                    found = _measure(cell, norms, dry_run, rounds)
                except Exception as problem:
                    found = {"cannot": _words(problem)}
                answers.send((cell, found))
                if "CUDA error" in str(found):
                    return
    except Exception:
        answers.send((None, traceback.format_exc()))


def warm_up(cell: Cell) -> None:
    """Let Triton compile what the cell needs, into its cache on the disk, for other processes."""
    with providers(dry_run=False) as norms:
        call(cell, norms["layernorm"], make(cell._replace(rows=2), "cuda", seed=0))


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
    with contextlib.suppress(Exception):  # what they need may be missing too
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        norms["liger"] = lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, 1e-5)
    with contextlib.suppress(Exception):
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


def _measure(cell: Cell, norms: dict[str, Norm], dry_run: bool, rounds: int) -> dict[str, Any]:
    device = "cpu" if dry_run else "cuda"
    if cell.work == "check":
        return checks(cell, norms["layernorm"], device)
    norms = dict(norms)
    if not cell.with_compiler:
        norms.pop("torch.compile", None)
    else:
        torch._dynamo.reset()  # it stops compiling after a few shapes
    given = make(cell, device, seed=0)
    found: dict[str, dict[str, Any]] = {name: {} for name in norms}
    for name, norm in norms.items():
        try:
            found[name]["error"] = error(cell, call(cell, norm, given), given)
        except Exception as problem:  # a peer that cannot do it is a result too
            found[name]["cannot"] = _words(problem)
        else:
            found[name]["wrong"] = not found[name]["error"] <= RIGHT[cell.dtype]
    if not dry_run:
        _time(cell, norms, found, rounds)
    return found


def _words(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"[:2000]


# ---- right or wrong


def error(cell: Cell, got: Any, given: Problem) -> float:
    """Return the largest distance from float64, in units in the last place of the largest value."""
    results = (got,) if isinstance(got, Tensor) else got
    distances, sizes = [0.0] * len(results), [0.0] * len(results)

    def compare(at: int, mine: Tensor, right: Tensor) -> None:
        distance = (mine.detach().double() - right).abs().max()
        distances[at] = max(distances[at], float(distance.nan_to_num(nan=float("inf"))))
        sizes[at] = max(sizes[at], float(right.abs().max()))

    weight, bias = (each.detach().double() for each in (given.weight, given.bias))
    dweight, dbias = torch.zeros_like(weight), torch.zeros_like(bias)
    step = max(1, 2**24 // cell.cols)
    for first in range(0, cell.rows, step):  # float64 of all rows might not fit
        rows = slice(first, first + step)
        x, dy = (each[rows].detach().double() for each in (given.x, given.dy))
        x = x - x.mean(-1, keepdim=True)
        rstd = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        xhat = x * rstd
        if cell.work == "forward":
            compare(0, results[0][rows], xhat * weight + bias)
            continue
        g = dy * weight
        means = g.mean(-1, keepdim=True), (g * xhat).mean(-1, keepdim=True)
        compare(0, results[0][rows], rstd * (g - means[0] - xhat * means[1]))
        dweight += (dy * xhat).sum(0)
        dbias += dy.sum(0)
    if cell.work != "forward":
        compare(1, results[1], dweight)
        compare(2, results[2], dbias)
    epsilon = torch.finfo(DTYPES[cell.dtype]).eps
    return max(d / (epsilon * max(s, 1e-30)) for d, s in zip(distances, sizes, strict=True))


def checks(cell: Cell, norm: Norm, device: str) -> dict[str, Any]:
    """Look for what an interpreter cannot show; each answer is True, an error in ulp, or words."""
    import layernorm.torch as ours

    given = make(cell, device, seed=1)
    x, weight, bias, dy = given

    def gradients(rows: slice) -> tuple[Tensor, ...]:
        part = x[rows].detach().requires_grad_()
        return torch.autograd.grad(norm(part, weight, bias), (part, weight, bias), dy[rows])

    def is_alone(rows: slice) -> bool:
        y = torch.equal(norm(x[rows], weight, bias), norm(x, weight, bias)[rows])
        return y and torch.equal(gradients(rows)[0], gradients(slice(None))[0][rows])

    def wherever_it_lies() -> bool:
        memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=device)[1:].view(x.shape)
        memory.copy_(x.detach())
        return torch.equal(norm(memory, weight, bias), norm(x, weight, bias))

    def repeats() -> bool:
        pairs = zip(gradients(slice(None)), gradients(slice(None)), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    def far_from_zero(work: str) -> float:
        moved = given._replace(x=(x.detach() + 1000).requires_grad_())
        return error(cell._replace(work=work), call(cell._replace(work=work), norm, moved), moved)

    def channels_first() -> float:
        turned = x.detach().t().contiguous().view(1, cell.cols, cell.rows)
        y = ours.layer_norm(turned, (cell.cols,), weight, bias, axis=1)
        return error(cell._replace(work="forward"), y[0].t(), given)

    def no_rows() -> bool:
        return all(not each.any() for each in gradients(slice(0, 0)))

    questions: dict[str, Callable[[], bool | float]] = {
        "a row alone has its bits": lambda: is_alone(slice(2, 3)),
        "a row has its bits wherever it lies": wherever_it_lies,
        "a repetition has the same bits": repeats,
        "error of y, mean 1000": lambda: far_from_zero("forward"),
        "error of the gradients, mean 1000": lambda: far_from_zero("backward"),
        "error of y, channels first": channels_first,
        "no rows": no_rows,
    }
    found: dict[str, Any] = {}
    for question, answer in questions.items():
        try:
            found[question] = answer()
        except Exception as problem:
            found[question] = _words(problem)
    return found


# ---- time


def _time(
    cell: Cell, norms: dict[str, Norm], found: dict[str, dict[str, Any]], rounds: int
) -> None:
    """Let the providers take turns; leave medians and spreads, in microseconds."""
    size = cell.useful_bytes
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(1, min(32, -(-3 * cache // size)))
    repeats = max(5, min(200, 2**30 // size))
    # All on one stream: autograd runs a backward on the stream of its forward, and a graph takes
    # what its own stream is given.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        sets = [make(cell, "cuda", seed) for seed in range(count)]
        runs: dict[str, list[Callable[[], Any]]] = {}
        for name, norm in norms.items():
            if "cannot" not in found[name]:
                ys = [norm(*each[:3]) if cell.work == "backward" else None for each in sets]
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
                graphs[name] = _graph(calls, repeats, stream)
            except RuntimeError as problem:  # not every provider can be captured
                found[name]["no_graph"] = _words(problem)
        for _ in range(rounds):
            for name, calls in runs.items():
                if name in graphs:
                    times.setdefault((name, "device"), []).append(_replay(*graphs[name]))
                times.setdefault((name, "eager"), []).append(_wall_time(calls, repeats))
    for (name, kind), values in times.items():
        found[name][kind] = statistics.median(values)
        found[name][f"{kind}_spread"] = max(values) - min(values)
    for each in found.values():
        if "device" in each and "device" in found["copy"]:
            each["of_copy"] = found["copy"]["device"] / each["device"]


def _graph(
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


def _replay(graph: torch.cuda.CUDAGraph, count: int) -> float:
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
