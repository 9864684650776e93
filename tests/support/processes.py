"""Processes of one machine that form a group of torch.distributed, over gloo."""

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def start_processes(function: Callable[[], None], count: int) -> None:
    """Run the function, which a module has to hold, in each of `count` new processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_work, (port, count, function), nprocs=count)


def _work(rank: int, port: int, count: int, function: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
    try:
        function()
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # At a usual exit PyTorch's own threads sometimes abort the process.
    os._exit(0)
