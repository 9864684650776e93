"""The smallest copy that serves: an array walked in blocks of whole rows.

For arrays that the kernels cannot walk as they lie: normalized axes apart from each other, or
strides that do not merge, or are negative or zero, or unaligned or byte-swapped elements.
"""

import functools
import itertools
import math
from collections.abc import Iterator

from layernorm import spec

# A scratch of this size stays in the cache between the copy and the kernel, and gives each thread
# enough to do. At least one row is taken, whatever its size.
BLOCK_BYTES = 1 << 21

# Rows side by side (channels first) share cache lines: a block takes at least this many of them.
# It also keeps a block from being a single row, which the kernels would see as another layout.
_MIN_INNER = 16

Block = tuple[slice, ...]


@functools.lru_cache(maxsize=1024)
def order_of(shape: spec.Shape, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Order the axes so that the layout collapses: as they are, or the normalized ones last."""
    every = tuple(range(len(shape)))
    if spec.layout_of(shape, axes) is not None:
        return every
    return tuple(axis for axis in every if axis not in axes) + axes


class Blocks:
    """Cuts `shape` into blocks along the axes that are not normalized.

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
            # Pieces of nearly the same size: a last one of a single row would be another layout.
            edges = [piece * size // pieces for piece in range(pieces + 1)]
            self._cuts[axis] = [slice(*edge) for edge in itertools.pairwise(edges)]
            widest = -(-size // pieces)
            self.largest *= widest
            inner *= widest
            if pieces > 1:
                room = 0

    def __iter__(self) -> Iterator[Block]:
        return itertools.product(*self._cuts)
