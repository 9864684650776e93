"""What `layernorm bench` times: cells, the plans made of them, and the words that select some."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from layernorm.accuracy import Kind
from layernorm.cli.problem import Problem, Shape, available_types, make_problem, number_type

ONE_THREAD_WORDS = "float32 rows warm fresh layer_norm"
"""The part of a plan that is also timed on one thread."""

KINDS: tuple[Kind, ...] = get_args(Kind)

SIXTEEN_BIT = ("bfloat16", "float16")


@dataclass(frozen=True)
class Cell:
    """One piece of work under one set of conditions."""

    direction: str  # forward, backward
    shape: Shape
    type: str = "float32"
    cache: str = "warm"  # warm: the same data again; cold: the caches emptied before each call
    output: str = "fresh"  # fresh: newly allocated; reused: written into the same array each time
    axis: int = -1
    kind: Kind = "layer_norm"

    @property
    def layout(self) -> str:
        """The normalized axis is the last (rows) or the second (channels_first)."""
        return "rows" if self.axis == -1 else "channels_first"

    @property
    def label(self) -> str:
        """The shape in one word: "512x768"."""
        return "x".join(map(str, self.shape))

    @property
    def section(self) -> str:
        """The heading of the cell's table; settings are named where they are not the usual ones."""
        return ", ".join(
            [
                f"{self.direction} {self.type}",
                *(["RMS norm"] if self.kind == "rms_norm" else []),
                *(["channels first"] if self.layout == "channels_first" else []),
                *(["cold cache"] if self.cache == "cold" else []),
                *(["reused output"] if self.output == "reused" else []),
            ]
        )

    @property
    def elements(self) -> int:
        """Elements of x."""
        return math.prod(self.shape)

    @property
    def useful_bytes(self) -> int:
        """Bytes that must be moved: x and y, or dy, x and dx."""
        arrays = 2 if self.direction == "forward" else 3
        return arrays * self.elements * number_type(self.type).itemsize

    @property
    def words(self) -> str:
        """All that tells this cell from others.

        "forward float32 rows warm fresh 512x768 layer_norm"
        """
        conditions = (self.direction, self.type, self.layout, self.cache, self.output)
        return " ".join((*conditions, self.label, self.kind))

    @classmethod
    def from_words(cls, words: str) -> "Cell":
        """Return the cell that has these `words`; without a kind, as in old reports, layer norm."""
        direction, type_name, layout, cache, output, label, *kind = words.split()
        axis = 1 if layout == "channels_first" else -1
        return cls(
            direction,
            _shape(label),
            type_name,
            cache,
            output,
            axis,
            "rms_norm" if kind == ["rms_norm"] else "layer_norm",
        )

    def is_named_by(self, words: str) -> bool:
        """Whether each of the words is one of this cell's."""
        return set(words.split()) <= set(self.words.split())

    def problem(self) -> Problem:
        """Draw the data; the same each time."""
        return make_problem(self.shape, self.type, axis=self.axis, kind=self.kind, mean=0.5)


def quick_plan() -> list[Cell]:
    """List the shapes of a small transformer: seconds."""
    return _here(
        [
            *_grid("forward", ["1x768", "512x768", "4096x768"]),
            *_grid("forward", ["1x768", "4096x1024"], output="reused"),
            *_grid("forward", ["4096x768"], types=["bfloat16"]),
            *_grid("backward", ["512x768", "4096x768"]),
            *_grid("backward", ["4096x768"], types=["bfloat16"]),
            *_channels_first("forward", ["8x96x28x28"]),
        ]
    )


def usual_plan() -> list[Cell]:
    """List small, middle and large work in each type, layout and state of the cache: minutes."""
    shapes = ["1x768", "64x64", "512x768", "512x769", "4096x768", "8192x1024"]
    return _here(
        [
            *_grid("forward", shapes),
            *_grid("forward", ["1x768", "512x768", "4096x768", "8192x1024"], output="reused"),
            *_grid("backward", shapes),
            *_grid("forward", shapes[2:], types=SIXTEEN_BIT),
            *_grid("backward", shapes[2:], types=SIXTEEN_BIT),
            *_grid("forward", ["512x768", "4096x768"], cache="cold"),
            *_grid("backward", ["512x768", "4096x768"], cache="cold"),
            *_channels_first("forward", ["8x96x28x28", "16x64x56x56"]),
            *_channels_first("backward", ["8x96x28x28"]),
            *_both_norms(["65536x64", "16384x256"], ["64x64x32x32"]),
        ]
    )


def full_plan() -> list[Cell]:
    """List the whole grid of benchmarks/run.py, 1x768 to 65536x1024: an hour."""
    shapes = [
        *("1x768", "16x768", "64x64", "64x1024", "512x63", "512x256", "512x768", "512x769"),
        *("4096x64", "4096x256", "4096x768", "4096x1023", "8192x1024", "65536x64", "65536x1024"),
    ]
    small = ["64x64", "512x63", "512x768", "4096x768", "4096x1023", "8192x1024", "65536x64"]
    images = ["8x96x28x28", "16x64x56x56", "4x256x63x65"]
    common = ["65536x64", "32768x128", "16384x192", "16384x256", "256x4096"]
    return _here(
        [
            *_grid("forward", shapes),
            *_grid("forward", ["1x768", *shapes[6:]], output="reused"),
            *_grid("backward", shapes[1:]),
            *_grid("forward", [*small, "65536x1024"], types=SIXTEEN_BIT),
            *_grid(
                "forward", ["1x768", "4096x768", "65536x1024"], types=SIXTEEN_BIT, output="reused"
            ),
            *_grid("backward", [*small, "65536x1024"], types=SIXTEEN_BIT),
            *_grid("forward", ["64x1024", "512x768", "4096x768"], cache="cold"),
            *_grid("forward", ["64x1024", "512x768", "4096x768"], cache="cold", output="reused"),
            *_grid("backward", ["64x1024", "512x768", "4096x768"], cache="cold"),
            *_channels_first("forward", images),
            *_channels_first("backward", images),
            *_channels_first("forward", images[:2], types=["bfloat16"]),
            *_both_norms(common, ["64x64x32x32", "8x96x56x56"]),
        ]
    )


PLANS = {"quick": quick_plan, "usual": usual_plan, "full": full_plan}


def _grid(
    direction: str,
    labels: Iterable[str],
    *,
    types: Sequence[str] = ("float32",),
    cache: str = "warm",
    output: str = "fresh",
    kind: Kind = "layer_norm",
) -> list[Cell]:
    return [
        Cell(direction, _shape(label), type_name, cache, output, kind=kind)
        for type_name in types
        for label in labels
    ]


def _channels_first(
    direction: str,
    labels: Iterable[str],
    *,
    types: Sequence[str] = ("float32",),
    kind: Kind = "layer_norm",
) -> list[Cell]:
    return [
        Cell(direction, _shape(label), type_name, axis=1, kind=kind)
        for type_name in types
        for label in labels
    ]


def _both_norms(labels: Sequence[str], images: Sequence[str]) -> list[Cell]:
    """Layer norm and RMS norm of rows and of images, in the types that models are trained in."""
    types = ("float32", "bfloat16")
    cells = []
    for kind in KINDS:
        for direction in ("forward", "backward"):
            cells += _grid(direction, labels, types=types, kind=kind)
            cells += _channels_first(direction, images, types=types, kind=kind)
    return cells


def _shape(label: str) -> Shape:
    return tuple(map(int, label.split("x")))


def _here(cells: Iterable[Cell]) -> list[Cell]:
    """Keep the cells whose type is available, each once."""
    types = available_types()
    return [cell for cell in dict.fromkeys(cells) if cell.type in types]
