"""Run PTX on the CPU: all threads of some programs at once, with NumPy.

`Kernel(ptx).launch(...)` computes what a GPU computes, bit for bit, but for the payload of NaN and
for instructions that PTX allows to be inexact. Threads that branch apart are masked; those at the
smallest address run first. It models no caches and no order of memory other than that of barriers:
what needs a barrier and has none is an error (`memory.py`), as is what it does not know.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ptx.memory import SHARED_BASE, WARP, GlobalMemory, PtxError, SharedMemory
from ptx.operations import Lanes
from ptx.translation import FILE, Segment, Translation, known

_MOST_LANES = 8192  # of programs that run together
_EXITED = np.iinfo(np.int64).max


class Kernel:
    """The entry of a PTX text."""

    def __init__(self, ptx: str) -> None:
        self.code = Translation(ptx)
        self.executed = 0  # instructions, of all threads of all launches

    def launch(
        self, programs: int, warps: int, shared: int, arguments: Sequence[torch.Tensor | int]
    ) -> None:
        """Run so many programs; change the tensors among the arguments."""
        memory = GlobalMemory([each for each in arguments if isinstance(each, torch.Tensor)])
        threads = warps * WARP
        together = max(1, _MOST_LANES // threads)
        values = [
            each.data_ptr() if isinstance(each, torch.Tensor) else each % 2**64
            for each in (*arguments, 0, 0)  # the last two: memory that these kernels do not use
        ]
        parameters = [np.array([each], np.uint64) for each in values]
        with np.errstate(all="ignore"):
            for first in range(0, programs, together):
                count = min(together, programs - first)
                own = SharedMemory(count, threads, shared, self.code.shared_cell)
                own_threads = _Threads(self.code, memory, own, parameters, first, count)
                try:
                    own_threads.run()
                except PtxError as error:
                    self._explain(error)
                self.executed += own_threads.executed
            memory.check()

    def _explain(self, error: PtxError) -> None:
        """Raise the error again, with the instruction that it comes from."""
        at, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == FILE:
                at = trace.tb_lineno - 2
            trace = trace.tb_next
        if at is None:
            raise error
        text = f"{self.code.instructions[at].text} (instruction {at}): {error}"
        raise type(error)(text) from error


@dataclass
class _Threads:
    """The threads of some programs, and what instructions do that are more than arithmetic."""

    code: Translation
    memory: GlobalMemory
    shared: SharedMemory
    parameters: list[Lanes]
    first: int
    programs: int
    special: dict[str, Lanes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.threads = self.shared.threads
        self.size = self.programs * self.threads
        self.number = np.arange(self.size)
        self.global_number = self.number + self.first * self.threads
        numbers = {"%tid.x": self.number % self.threads}
        numbers |= {"%ctaid.x": self.number // self.threads + self.first}
        self.special = {name: each.astype(np.uint32) for name, each in numbers.items()}

    def run(self) -> None:
        code, segments = self.code, self.code.segments
        self.executed = 0
        self.registers: list[Any] = [None] * code.registers
        place = 0
        while 0 <= place < len(segments):
            code.whole(place)(self, self.registers)
            segment = segments[segments[place].last]
            self.executed += self.size * (segment.steps.stop - segments[place].steps.start)
            following = segments[place].last + 1
            if segment.target is None:
                place = following
                continue
            taken = self._taken(segment)
            if taken is None or taken.all():
                place = segment.target
            elif not taken.any():
                place = following
            else:
                place = self._run_apart(np.where(taken, segment.target, following))
        self.shared.barrier(None)

    def _taken(self, segment: Segment) -> Lanes | None:
        if not segment.guard:
            return None
        taken = known(self.registers[self.code.register(segment.guard)], segment.guard)
        return ~taken if segment.negated else taken

    def _run_apart(self, places: Lanes) -> int:
        """Run until all threads are at the start of the same block, which is returned."""
        segments = self.code.segments
        places = np.where((places < 0) | (places >= len(segments)), _EXITED, places)
        parked = np.zeros(self.size, bool)
        while True:
            lowest = places.min()
            if lowest == places.max():
                if lowest == _EXITED:
                    return -1
                if segments[lowest].starts_block:
                    return int(lowest)
            if (parked | (places == _EXITED)).all():
                raise PtxError("threads wait for others that do not come")
            place = int(places[~parked].min())
            segment = segments[place]
            active = places == place
            if segment.synchronizes:
                size = WARP if segment.synchronizes == "warp" else self.threads
                here, live = (each.reshape(-1, size).sum(1) for each in (active, places != _EXITED))
                complete = active & (here == live).repeat(size)
                parked |= active & ~complete
                active = complete
                parked[active] = False
                if not active.any():
                    continue
            self.code.masked(segment)(self, self.registers, active)
            self.executed += int(active.sum()) * len(segment.steps)
            taken = self._taken(segment)
            following = np.int64(place + 1)
            if segment.target is not None:
                target = _EXITED if segment.target < 0 else segment.target
                following = target if taken is None else np.where(taken, target, place + 1)
            places = np.where(active, following, places)

    # Called by the instructions

    def _lanes(self, mask: Lanes | None) -> Lanes:
        return self.number if mask is None else np.flatnonzero(self._full(mask))

    def _full(self, values: Lanes) -> Lanes:
        return np.broadcast_to(values, self.size) if values.size != self.size else values

    def _spread(self, values: Lanes, lanes: Lanes) -> Lanes:
        if lanes.size == self.size:
            return values
        result = np.zeros((len(values), self.size), values.dtype)
        result[:, lanes] = values
        return result

    def split(self, values: Lanes, count: int) -> list[Lanes]:
        parts = values.view(f"u{values.itemsize // count}").reshape(-1, count)
        return [np.ascontiguousarray(parts[:, place]) for place in range(count)]

    def join(self, *parts: Lanes) -> Lanes:
        size = max(each.size for each in parts)
        both = np.empty((size, len(parts)), parts[0].dtype)
        for place, each in enumerate(parts):
            both[:, place] = each
        return both.view(f"u{parts[0].itemsize * len(parts)}").reshape(size)

    def load_global(
        self, address: Lanes, offset: int, size: int, count: int, mask: Lanes | None
    ) -> Lanes:
        lanes = self._lanes(mask)
        if lanes.size == 0:
            return np.zeros((count, 1), f"u{size}")
        address = self._full(address)[lanes] + np.uint64(offset % 2**64)
        return self._spread(
            self.memory.load(address, self.global_number[lanes], size, count), lanes
        )

    def store_global(
        self, address: Lanes, offset: int, values: Iterable[Lanes], mask: Lanes | None
    ) -> None:
        lanes = self._lanes(mask)
        if lanes.size:
            address = self._full(address)[lanes] + np.uint64(offset % 2**64)
            given = [self._full(each)[lanes] for each in values]
            self.memory.store(address, self.global_number[lanes], given)

    def load_shared(
        self, address: Lanes, offset: int, size: int, count: int, mask: Lanes | None
    ) -> Lanes:
        lanes = self._lanes(mask)
        if lanes.size == 0:
            return np.zeros((count, 1), f"u{size}")
        address = self._full(address)[lanes].astype(np.int64) + offset
        return self._spread(self.shared.load(address, lanes, size, count), lanes)

    def store_shared(
        self, address: Lanes, offset: int, values: Iterable[Lanes], mask: Lanes | None
    ) -> None:
        lanes = self._lanes(mask)
        if lanes.size:
            address = self._full(address)[lanes].astype(np.int64) + offset
            self.shared.store(address, lanes, [self._full(each)[lanes] for each in values])

    def _matrix_rows(self, address: Lanes, offset: int, count: int, mask: Lanes | None) -> Lanes:
        """Return the addresses of the rows of 8 elements, (warps, matrices, 8)."""
        if mask is not None:
            address = np.where(mask, address, np.uint32(SHARED_BASE))
        rows = self._full(address).astype(np.int64).reshape(-1, WARP)[:, : 8 * count] + offset
        if (rows % 16).any():
            raise PtxError("a row of a matrix is not at a multiple of 16 bytes")
        return rows.reshape(-1, count, 8)

    def load_matrix(
        self, address: Lanes, offset: int, count: int, transposed: bool, mask: Lanes | None
    ) -> list[Lanes]:
        lanes = self._lanes(mask)
        rows = self._matrix_rows(address, offset, count, mask)
        lane = np.arange(WARP)
        results = []
        for matrix in range(count):
            halves = []
            for half in range(2):
                row, element = lane // 4, lane % 4 * 2 + half
                if transposed:
                    row, element = element, row
                own = (rows[:, matrix, row] + 2 * element).reshape(-1)[lanes]
                halves.append(self._spread(self.shared.load(own, lanes, 2, 1), lanes)[0])
            results.append(self.join(*halves))
        return results if count > 1 else results[0]

    def store_matrix(
        self, address: Lanes, offset: int, values: Sequence[Lanes], mask: Lanes | None
    ) -> None:
        lanes = self._lanes(mask)
        rows = self._matrix_rows(address, offset, len(values), mask)
        lane = np.arange(WARP)
        for matrix, value in enumerate(values):
            for half, part in enumerate(self.split(self._full(value), 2)):
                own = (rows[:, matrix, lane // 4] + lane % 4 * 4 + 2 * half).reshape(-1)[lanes]
                self.shared.store(own, lanes, [part[lanes]])

    def barrier(self, mask: Lanes | None) -> None:
        self.shared.barrier(None if mask is None else np.flatnonzero(mask))

    def synchronize_warps(self, mask: Lanes | None) -> None:
        self.shared.synchronize_warps(None if mask is None else np.flatnonzero(mask))

    def bfly(self, values: Lanes, by: Lanes) -> Lanes:
        return values if values.size == 1 else values[self.number ^ (by & 31)]

    def idx(self, values: Lanes, of: Lanes) -> Lanes:
        return values if values.size == 1 else values[(self.number & ~31) | (of & 31)]

    def largest(self, values: Lanes, members: Lanes) -> Lanes:
        if (members != 0xFFFFFFFF).any():
            raise NotImplementedError("redux.sync of some threads of a warp")
        return self._full(values).reshape(-1, WARP).max(1).repeat(WARP)


@functools.lru_cache(maxsize=256)
def kernel_of(ptx: str) -> Kernel:
    """Return the kernel of a text, translated once."""
    return Kernel(ptx)
