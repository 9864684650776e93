"""Time norms of DTensors that are sharded along the hidden axis, in turns, on gloo processes.

    python benchmarks/processes.py [--processes 2,4] [--shapes 1x8192,64x4096,2048x4096]
        [--types float32,bfloat16]

Medians of forward and backward together, in milliseconds: ours, which gathers moments; ours of an x
that is gathered first; and PyTorch's layer norm, for which DTensor gathers x. A minute or two.
"""

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn import functional as F

import layernorm.torch as ln

REPEATS = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="2,4", metavar="N,...")
    parser.add_argument("--shapes", default="1x8192,64x4096,2048x4096", metavar="NxN,...")
    parser.add_argument("--types", default="float32,bfloat16", metavar="TYPE,...")
    options = parser.parse_args()
    print("| processes | type | shape | moments | x gathered | PyTorch's | PyTorch's : moments |")
    print("|--:|---|---|--:|--:|--:|--:|", flush=True)
    for processes in map(int, options.processes.split(",")):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (port, processes, options.shapes.split(","), options.types.split(","))
        multiprocessing.spawn(work, arguments, nprocs=processes)


def work(rank: int, port: int, processes: int, shapes: list[str], types: list[str]) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    for type_name in types:
        for shape in shapes:
            rows, cols = map(int, shape.split("x"))
            times = medians(calls(rows, cols, getattr(torch, type_name)))
            if rank == 0:
                cells = " | ".join(f"{1e3 * each:.1f}" for each in times)
                ratio = f"{times[2] / times[0]:.1f}"
                line = f"| {processes} | {type_name} | {shape} | {cells} | {ratio} |"
                print(line, flush=True)
    # At a usual exit PyTorch's own threads sometimes abort the process.
    os._exit(0)


def calls(rows: int, cols: int, dtype: torch.dtype) -> list[Callable[[], None]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    split, whole = [Shard(1)], [Replicate()]
    x, dy = (distribute_tensor(torch.randn(rows, cols).to(dtype), mesh, split) for _ in range(2))
    ones, zeros = torch.ones(cols, dtype=dtype), torch.zeros(cols, dtype=dtype)
    own = [distribute_tensor(each, mesh, [Shard(0)]) for each in (ones, zeros)]
    shared = [distribute_tensor(each, mesh, whole) for each in (ones, zeros)]
    for each in (x, *own, *shared):
        each.requires_grad_()

    def backward(y: DTensor) -> None:
        y.redistribute(placements=split).backward(dy)

    return [
        lambda: backward(ln.layer_norm(x, (cols,), *own)),
        lambda: backward(ln.layer_norm(x.redistribute(placements=whole), (cols,), *shared)),
        lambda: backward(F.layer_norm(x, (cols,), *shared)),
    ]


def medians(every: list[Callable[[], None]]) -> list[float]:
    times: list[list[float]] = [[] for _ in every]
    for _ in range(2 + REPEATS):
        for call, seconds in zip(every, times, strict=True):
            dist.barrier()
            start = time.perf_counter()
            call()
            dist.barrier()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(each[2:]) for each in times]


if __name__ == "__main__":
    main()
