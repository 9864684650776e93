"""Blocks of whole rows, for arrays that the kernels cannot read in place.

Such an array has normalized axes with others between them, strides that do not merge or are not
positive, or unaligned or byte-swapped elements. It is copied a block at a time.
"""

import functools
import itertools
import math
from collections.abc import Iterator

from layernorm import spec

# A scratch array of this size stays in the cache between the copy and the kernel, and gives each
# thread enough work. A block has at least one row, whatever its size.
BLOCK_BYTES = 1 << 21

# Rows side by side (channels first) share cache lines: a block takes at least this many of them.
# So a block is never a single row, which would have another layout.
_MIN_INNER = 16

Block = tuple[slice, ...]

TOO_MANY_AXES_APART = (
    "weight and bias vary along too many axes of x with others between them, expected at most four "
    "groups: move the axes of x together"
)


@functools.lru_cache(maxsize=1024)
def order_of(
    shape: spec.Shape, axes: tuple[int, ...], varying: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """Return an order of the axes that the kernels take: theirs, or the normalized axes last."""
    every = tuple(range(len(shape)))
    first = min((axis for axis in axes if shape[axis] != 1), default=axes[0])
    if spec.layout_of(shape, axes) is not None and max(varying, default=-1) < first:
        return every
    return tuple(axis for axis in every if axis not in axes) + axes


class Blocks:
    """Blocks of `shape`, cut along the axes that are not normalized.

    Attributes:
        largest: number of elements in the largest block.
    """

    def __init__(self, shape: spec.Shape, axes: tuple[int, ...], itemsize: int) -> None:
        self.largest = math.prod(spec.normalized_shape(shape, axes))
        self._cuts = [[slice(None)] for _ in shape]
        room = BLOCK_BYTES // itemsize
        inner = 1
        for axis in reversed(range(len(shape))):
            if axis in axes:
                continue
            size = shape[axis]
            step = max(1, room // self.largest)
            if axis > axes[0]:
                step = max(step, -(-_MIN_INNER // inner))
            pieces = -(-size // step)
            # Nearly equal pieces: a last piece of a single row would have another layout.
            edges = [piece * size // pieces for piece in range(pieces + 1)]
            self._cuts[axis] = [slice(*edge) for edge in itertools.pairwise(edges)]
            largest_piece = -(-size // pieces)
            self.largest *= largest_piece
            inner *= largest_piece
            if pieces > 1:
                room = 0

    def __iter__(self) -> Iterator[Block]:
        return itertools.product(*self._cuts)
