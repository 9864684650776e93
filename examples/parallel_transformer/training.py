"""Trains the model on one process and on several, from the same weights and on the same batches."""

import logging
import os
import socket
import time
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from parallel_transformer.model import Transformer
from parallel_transformer.plan import parallelize
from parallel_transformer.text import Text


class Run(NamedTuple):
    """The loss of each step, that of other text after them, and the time of all steps."""

    losses: list[float]
    test_loss: float
    seconds: float


def train_alone(steps: int) -> Run:
    """Train on this process."""
    text = Text()
    return _train(_model(text), text, steps)


def train_in_processes(processes: int, steps: int) -> Run:
    """Start so many processes on this machine, and train on them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_work, (port, processes, steps, results), nprocs=processes)
    return Run(*results.get())


def _work(rank: int, port: int, processes: int, steps: int, results: Any) -> None:
    torch.set_num_threads(1)
    # That gloo gathers where other backends exchange, from time to the hidden axis.
    logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    text = Text()
    model = _model(text)
    parallelize(model, init_device_mesh("cpu", (processes,)))
    run = _train(model, text, steps)
    if rank == 0:
        results.put(tuple(run))
    dist.destroy_process_group()
    # At a usual exit PyTorch's own threads sometimes abort the process.
    os._exit(0)


def _model(text: Text) -> Transformer:
    torch.manual_seed(0)
    return Transformer(len(text.characters))


def _train(model: Transformer, text: Text, steps: int) -> Run:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    start = time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad()
        loss = _loss(model, *text.batch(seed=step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    with torch.no_grad():
        return Run(losses, _loss(model, *text.test_batch()).item(), seconds)


def _loss(model: Transformer, tokens: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
