"""The memory of emulated threads, checked: bounds, alignment, races, bytes never written.

Addresses of global memory are those of the launch's tensors. A lane is a thread; its program and
warp follow from its number. `lanes` are the numbers of those that take part, None for all.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ptx.operations import Lanes

WARP = 32
SHARED_BASE = 1024  # the address of a program's shared memory


class PtxError(AssertionError):
    """What a GPU would do wrong, or not as the kernel means it."""


class Race(PtxError):
    """Threads of different warps use the same memory without a barrier between."""


class RaceInWarp(PtxError):
    """Threads of one warp use the same memory without `bar.warp.sync`; a shuffle orders nothing."""


class _Arena:
    """Memory that one or more overlapping tensors cover."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        spans = [_span(each) for each in tensors]
        self.first, self.end = min(spans)[0], max(end for _, end in spans)
        self.base = self.first // 16 * 16  # no page starts in between
        size = -(-(self.end - self.base) // 16) * 16
        memory = (ctypes.c_uint8 * size).from_address(self.base)
        self.views = {n: np.frombuffer(memory, f"u{n}") for n in (1, 2, 4, 8)}
        self.valid = self._valid(tensors, spans, size)
        self.cell = min(each.element_size() for each in tensors)
        self.writers: Lanes | None = None  # of each cell, the thread that wrote it, or -1
        self.readers: Lanes | None = None  # the thread that read it, -1, or -2 for several

    def _valid(
        self, tensors: Sequence[torch.Tensor], spans: list[tuple[int, int]], size: int
    ) -> Lanes | None:
        """Tell which bytes are those of an element; None if all are."""
        if all(
            end - start == each.nbytes for each, (start, end) in zip(tensors, spans, strict=True)
        ):
            return None
        valid = np.zeros(size, bool)
        for each, (start, end) in zip(tensors, spans, strict=True):
            own = valid[start - self.base :][: end - start]
            strides = [stride * each.element_size() for stride in each.stride()]
            for byte in range(each.element_size()):
                np.lib.stride_tricks.as_strided(own[byte:], each.shape, strides)[...] = True
        return valid


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


class GlobalMemory:
    """The tensors of a launch."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        groups: list[list[torch.Tensor]] = []
        end = -1
        for each in sorted((t for t in tensors if t.numel()), key=_span):
            start, own_end = _span(each)
            if start >= end:
                groups.append([])
            groups[-1].append(each)
            end = max(end, own_end)
        self.arenas = [_Arena(group) for group in groups]
        self._loads: list[tuple[_Arena, Lanes, Lanes, int]] = []

    def _places(
        self, addresses: Lanes, size: int, count: int
    ) -> list[tuple[_Arena, Lanes | slice, Lanes]]:
        """Return for each arena which of the addresses are in it, and the index of the first."""
        whole = size * count
        misaligned = addresses % np.uint64(whole) != 0
        if misaligned.any():
            address = int(addresses[misaligned][0])
            raise PtxError(f"address {address:#x} is not a multiple of {whole} bytes")
        low, high = int(addresses.min()), int(addresses.max())
        found = []
        for arena in self.arenas:
            if arena.first <= low and high + whole <= arena.end:
                found = [(arena, slice(None), addresses)]
                break
            inside = (addresses >= arena.first) & (addresses <= arena.end - whole)
            if inside.any():
                found.append((arena, inside, addresses[inside]))
        if sum(each.size for _, _, each in found) != addresses.size:
            raise PtxError(f"an address is outside all tensors, in [{low:#x}, {high:#x}]")
        places = []
        for arena, which, inside in found:
            offsets = (inside - np.uint64(arena.base)).astype(np.int64)
            if arena.valid is not None:
                for byte in range(0, whole, arena.cell):
                    if not arena.valid[offsets + byte].all():
                        raise PtxError("an address lies between the elements of a tensor")
            places.append((arena, which, offsets // size))
        return places

    def load(self, addresses: Lanes, threads: Lanes, size: int, count: int) -> Lanes:
        """Return (count, lanes)."""
        result = np.empty((count, addresses.size), f"u{size}")
        for arena, which, index in self._places(addresses, size, count):
            for each in range(count):
                result[each, which] = arena.views[size][index + each]
            self._loads.append((arena, index, threads[which], size * count))
        return result

    def store(self, addresses: Lanes, threads: Lanes, values: Sequence[Lanes]) -> None:
        size, count = values[0].itemsize, len(values)
        for arena, which, index in self._places(addresses, size, count):
            if arena.writers is None:
                arena.writers = np.full(arena.views[1].size // arena.cell, -1, np.int64)
                arena.readers = arena.writers.copy()
            for cells in _cells(index, size, size * count, arena.cell):
                before = arena.writers[cells]
                arena.writers[cells] = threads[which]
                other = (before != -1) & (before != threads[which])
                if other.any() or (arena.writers[cells] != threads[which]).any():
                    raise Race("two threads write the same element of a tensor")
            for each in range(count):
                arena.views[size][index + each] = values[each][which]

    def check(self) -> None:
        """Check that what was loaded is not written by other threads of this launch."""
        for arena, index, threads, size in self._loads:
            if arena.readers is None:
                continue
            for cells in _cells(index, size, size, arena.cell):
                before = arena.readers[cells]
                arena.readers[cells] = threads
                several = (before != -1) & (before != threads)
                arena.readers[cells[several | (arena.readers[cells] != threads)]] = -2
        self._loads.clear()
        for arena in self.arenas:
            if arena.writers is None:
                continue
            both = (arena.writers != -1) & (arena.readers != -1)
            if (both & (arena.writers != arena.readers)).any():
                raise Race("a thread reads what another writes to a tensor in the same launch")


def _cells(index: Lanes, unit: int, size: int, cell: int) -> list[Lanes]:
    """Return the cells of accesses of `size` bytes at index * unit."""
    first = index * unit // cell
    return [first + each for each in range(max(1, size // cell))]


class _Access(NamedTuple):
    lanes: Lanes
    index: Lanes  # of the first element, in elements
    size: int  # of an element, in bytes
    count: int
    values: Sequence[Lanes] | None  # of a store: of each element
    stamps: Lanes  # how many synchronizations of its warp each thread had passed


class SharedMemory:
    """That of each program, with a log of the accesses since the last barrier."""

    def __init__(self, programs: int, threads: int, size: int, cell: int) -> None:
        self.threads, self.size, self.cell = threads, size, cell
        self.stride = max(16, -(-size // 16) * 16)
        memory = np.full(programs * self.stride, 0xFF, np.uint8)  # NaN
        self.views = {n: memory.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.written = np.zeros(memory.size // cell, bool)
        self.synchronized = 0
        self.warp_synchronized = np.zeros(programs * threads // WARP, np.int64)
        self._log: list[_Access] = []

    def _offsets(self, addresses: Lanes, lanes: Lanes, whole: int, alignment: int) -> Lanes:
        own = addresses.astype(np.int64) - SHARED_BASE
        if ((own < 0) | (own + whole > self.size)).any():
            wrong = own[(own < 0) | (own + whole > self.size)][0]
            raise PtxError(f"offset {wrong} is outside the {self.size} bytes of shared memory")
        if (own % alignment).any():
            raise PtxError(f"a shared address is not a multiple of {alignment} bytes")
        return own + lanes // self.threads * self.stride

    def _stamps(self, lanes: Lanes) -> Lanes:
        return self.synchronized + self.warp_synchronized[lanes // WARP]

    def load(self, addresses: Lanes, lanes: Lanes, size: int, count: int) -> Lanes:
        index = self._offsets(addresses, lanes, size * count, size * count) // size
        for cells in _cells(index, size, size * count, self.cell):
            if not self.written[cells].all():
                raise PtxError("shared memory is read that was never written")
        self._log.append(_Access(lanes, index, size, count, None, self._stamps(lanes)))
        return np.stack([self.views[size][index + each] for each in range(count)])

    def store(self, addresses: Lanes, lanes: Lanes, values: Sequence[Lanes]) -> None:
        size, count = values[0].itemsize, len(values)
        index = self._offsets(addresses, lanes, size * count, size * count) // size
        for each in range(count):
            self.views[size][index + each] = values[each]
        for cells in _cells(index, size, size * count, self.cell):
            self.written[cells] = True
        self._log.append(_Access(lanes, index, size, count, values, self._stamps(lanes)))

    def synchronize_warps(self, lanes: Lanes | None) -> None:
        if self.threads == WARP:  # what a barrier does
            self.barrier(lanes)
        elif lanes is None:
            self.synchronized += 1
        else:
            self.warp_synchronized[np.unique(lanes // WARP)] += 1

    def barrier(self, lanes: Lanes | None) -> None:
        """Check what the threads of these lanes have done since their last barrier."""
        if any(each.values is not None for each in self._log):
            self._check()
        if lanes is None:
            self._log.clear()
            return
        programs = np.unique(lanes // self.threads)
        left = []
        for each in self._log:
            keep = ~np.isin(each.lanes // self.threads, programs)
            if keep.any():
                values = each.values and [of_element[keep] for of_element in each.values]
                kept = (array[keep] for array in (each.lanes, each.index, each.stamps))
                own, index, stamps = kept
                left.append(_Access(own, index, each.size, each.count, values, stamps))
        self._log = left

    def _uses(self) -> Iterator[tuple[Lanes, Lanes, Lanes, Lanes | None, Lanes | None]]:
        """Give cells, lanes, stamps, values and what the values differ from, of each element."""
        for each in self._log:
            for place in range(each.count):
                index = each.index + place
                value = memory = None
                if each.values is not None:
                    value, memory = each.values[place], self.views[each.size][index]
                for cells in _cells(index, each.size, each.size, self.cell):
                    yield cells, each.lanes, each.stamps, value, memory

    def _check(self) -> None:
        size = self.written.size
        has_read, has_write, differs, several = (np.zeros(size, bool) for _ in range(4))
        user = np.full(size, -1, np.int64)
        for cells, lanes, _, value, memory in self._uses():
            user[cells] = lanes
            if value is None:
                has_read[cells] = True
            else:
                has_write[cells] = True
                differs[cells[value != memory]] = True
        for cells, lanes, *_ in self._uses():
            several[cells[user[cells] != lanes]] = True
        doubtful = several & (differs | (has_read & has_write))
        if doubtful.any():
            self._compare_pairs(doubtful)

    def _compare_pairs(self, doubtful: Lanes) -> None:
        uses: dict[int, list[tuple[int, bytes | None, int]]] = {}
        for cells, lanes, stamps, values, _ in self._uses():
            for at in np.flatnonzero(doubtful[cells]):
                value = None if values is None else values[at].tobytes()
                uses.setdefault(int(cells[at]), []).append((int(lanes[at]), value, int(stamps[at])))
        for cell, of_cell in uses.items():
            for thread, value, stamp in of_cell:
                if value is None:
                    continue
                for other, other_value, other_stamp in of_cell:
                    # Triton lets threads that hold the same element store it
                    if other == thread or other_value == value:
                        continue
                    same_warp = other // WARP == thread // WARP
                    if same_warp and stamp != other_stamp:
                        continue
                    byte = cell * self.cell % self.stride
                    verb = "read" if other_value is None else "written"
                    text = f"byte {byte} of shared memory is written by thread "
                    text += f"{thread % self.threads} and {verb} by {other % self.threads}"
                    raise (RaceInWarp if same_warp else Race)(f"{text} between two barriers")
