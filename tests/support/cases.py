"""Named calls of the forward and the backward, which the tests run.

Needs NumPy only, and ml_dtypes for bfloat16.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from layouts import LAYOUTS, Array, axes_of, from_rows
from values import EVERY_KIND, LIMITS, TYPES, VALUES, dtype_of, parameter_types

KINDS = ("layer_norm", "rms_norm")

# One below, at and above each vector width (a vector holds up to 32 16-bit values) and each power
# of two that a kernel may split at; 1, 2 and 3 leave most of a vector empty.
WIDTHS = (
    *(1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 256, 257),
    *(511, 513, 768, 769, 1023, 1024, 1025, 4095, 4097, 65537, 2**20),
)

PARAMETERS = (
    *("weight bias", "weight", "bias", ""),
    *("weight bias zero_centered", "weight zero_centered"),
)

EPS = (0.0, 1e-12, 1e-5, 1e-3, 1.0)


class Arrays(NamedTuple):
    x: Array
    dy: Array
    weight: Array | None
    bias: Array | None


@dataclass(frozen=True)
class Case:
    """A call: everything but the implementation."""

    kind: str = "layer_norm"
    dtype: str = "float32"
    cols: int = 768
    values: str = "ordinary"
    layout: str = "contiguous"
    rows: int | None = None  # replaces the layout's first size
    parameters: str = "weight bias"  # which of "weight", "bias" and "zero_centered"
    parameter_dtype: str | None = None  # None: x's
    along: tuple[int, ...] | None = None  # kept axes that weight and bias have too, and vary along
    eps: float = 1e-5
    dy_values: str = "off_zero"  # or "along_xhat", which depends on x and weight
    seed: int = 0

    @property
    def id(self) -> str:
        words = [self.kind, self.dtype, str(self.cols), self.values, self.layout]
        if self.rows is not None:
            words.append(f"{self.rows}rows")
        if self.parameters != "weight bias":
            words.append(self.parameters.replace(" ", "+") or "no_parameters")
        if self.parameter_dtype is not None:
            words.append(f"{self.parameter_dtype}_parameters")
        if self.along is not None:
            words.append(f"along{''.join(map(str, self.along))}")
        if self.eps != 1e-5:
            words.append(f"eps{self.eps:g}")
        if self.dy_values != "off_zero":
            words.append(f"dy_{self.dy_values}")
        return "-".join(words)

    def but(self, **changes: object) -> "Case":
        return replace(self, **changes)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = LAYOUTS[self.layout].shape(self.cols)
        return shape if self.rows is None else (self.rows, *shape[1:])

    @property
    def axis(self) -> int | tuple[int, ...]:
        return LAYOUTS[self.layout].axis

    @property
    def normalized_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[a] for a in axes_of(self.axis, len(self.shape)))

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        if self.along is None:
            return self.normalized_shape
        own = (*axes_of(self.axis, len(self.shape)), *self.along)
        return tuple(size if axis in own else 1 for axis, size in enumerate(self.shape))

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        axes = axes_of(self.axis, len(self.shape))
        return tuple(1 if a in axes else size for a, size in enumerate(self.shape))

    @property
    def has_weight(self) -> bool:
        return "weight" in self.parameters.split()

    @property
    def has_bias(self) -> bool:
        return "bias" in self.parameters.split() and self.kind == "layer_norm"

    @property
    def zero_centered_weight(self) -> bool:
        return "zero_centered" in self.parameters.split()

    @property
    def definition(self) -> dict[str, object]:
        """The keywords of both functions and of the reference."""
        zero_centered = self.zero_centered_weight
        return {"axis": self.axis, "eps": self.eps, "zero_centered_weight": zero_centered}

    def arrays(self) -> Arrays:
        """Make x, dy, weight and bias, the same on every call."""
        rng = np.random.default_rng([self.seed, self.cols])
        weight = rng.standard_normal(self.parameter_shape)
        weight = 0.1 * weight if self.zero_centered_weight else 1.0 + 0.5 * weight
        bias = rng.standard_normal(self.parameter_shape)
        parameter_dtype = dtype_of(self.parameter_dtype or self.dtype)
        rows, cols = math.prod(self.statistics_shape), math.prod(self.normalized_shape)
        x = VALUES[self.values](rng, rows, cols, LIMITS[self.dtype])
        if self.dy_values == "along_xhat":
            mean = x.mean(axis=1, keepdims=True) if self.kind == "layer_norm" else 0
            dy = np.where(x > mean, 1, -1) * rng.uniform(1, 2, (rows, 1))
            if self.has_weight:
                assert self.along is None
                dy /= weight.reshape(-1)
        else:
            dy = VALUES[self.dy_values](rng, rows, cols, LIMITS[self.dtype])
        return Arrays(
            x=self._laid_out(x),
            dy=self._laid_out(dy),
            weight=weight.astype(parameter_dtype) if self.has_weight else None,
            bias=bias.astype(parameter_dtype) if self.has_bias else None,
        )

    def residual(self) -> tuple[Array, Array]:
        """Make a residual and dtotal, the same on every call, of the layout of x."""
        rng = np.random.default_rng([self.seed, self.cols, 1])
        rows, cols = math.prod(self.statistics_shape), math.prod(self.normalized_shape)
        residual = VALUES[self.values](rng, rows, cols, LIMITS[self.dtype])
        dtotal = VALUES["off_zero"](rng, rows, cols, LIMITS[self.dtype])
        return self._laid_out(residual), self._laid_out(dtotal)

    def gate(self) -> Array:
        """Make a gate, the same on every call, of the layout of x."""
        rng = np.random.default_rng([self.seed, self.cols, 2])
        rows, cols = math.prod(self.statistics_shape), math.prod(self.normalized_shape)
        return self._laid_out(2 * rng.standard_normal((rows, cols)))

    def _laid_out(self, rows: Array) -> Array:
        largest = LIMITS[self.dtype].largest
        rounded = rows.clip(-largest, largest).astype(dtype_of(self.dtype))
        return LAYOUTS[self.layout].lay(from_rows(rounded, self.shape, self.axis))


def each_type(kind: str = "layer_norm") -> list[Case]:
    return [Case(kind=kind, dtype=dtype) for dtype in TYPES]


def width_cases(kind: str) -> list[Case]:
    """Every width: rows of every kind of values, or of a few kinds where they are long."""
    cases = []
    for base in each_type(kind):
        for cols in WIDTHS:
            if cols <= 4097:
                cases.append(base.but(cols=cols, values="mixed", rows=EVERY_KIND + 2))
            else:
                long = ("mean_2_to_20", "near_largest", "outlier")
                rows, few = (1, 1) if cols > 10**6 else (2, len(long))
                cases += [base.but(cols=cols, values=values, rows=rows) for values in long[:few]]
    return cases


def value_cases(kind: str) -> list[Case]:
    """Every kind of values."""
    # 3: the mean is a large part of each element. 1025: one past the last full block.
    return [
        base.but(cols=cols, values=values)
        for base in each_type(kind)
        for values in VALUES
        for cols in (3, 63, 1025)
    ]


def layout_cases(kind: str) -> list[Case]:
    """Every layout."""
    return [
        base.but(cols=cols, layout=layout, values=values)
        for base in each_type(kind)
        for layout in LAYOUTS
        for cols, values in ((48, "mixed"), (35, "mean_1e4"))
    ]


def eps_cases(kind: str) -> list[Case]:
    """Every eps, with variances far above and far below it."""
    return [
        base.but(cols=129, eps=eps, values=values)
        for base in each_type(kind)
        for eps in EPS
        for values in ("ordinary", "subnormals", "smallest_normals", "scale_1e18")
    ]


def dy_cases(kind: str) -> list[Case]:
    """Every kind of dy, with an ordinary x and with an x of the same kind."""
    return [
        base.but(cols=cols, layout=layout, values=values, dy_values=dy_values)
        for base in each_type(kind)
        for cols, layout in (
            *((65, "contiguous"), (3, "contiguous"), (24, "channels_first_67")),
            *((3, "first_axis"), (4, "axes_apart")),
        )
        for dy_values in VALUES
        for values in dict.fromkeys(("ordinary", "mean_1e4", dy_values))
        if values != "mean_1e4" or cols != 3
    ]


def along_xhat_cases(kind: str) -> list[Case]:
    """dy along xhat: dx is small by cancellation, but the roundings of xhat are not."""
    return [
        base.but(
            cols=cols,
            rows=rows,
            layout=layout,
            values=values,
            parameters=parameters,
            dy_values="along_xhat",
        )
        for base in each_type(kind)
        for cols, rows, layout in (
            *((cols, 1000, "contiguous") for cols in (1, 2, 3, 9)),
            *((cols, 40, "contiguous") for cols in (33, 257, 1126)),
            *((cols, 40, "channels_first_67") for cols in (2, 3, 33)),
        )
        for values in ("ordinary", "two_values")
        for parameters in ("", "weight")
    ]


def parameter_cases(kind: str) -> list[Case]:
    """Every set of parameters, in every type they may have, for each path through the kernels."""
    cases = [
        # 65: the last vector is nearly all padding.
        Case(kind, dtype, cols, layout=layout, parameters=parameters, parameter_dtype=given)
        for dtype in TYPES
        for given in (None, *parameter_types(dtype)[1:])
        for parameters in PARAMETERS
        for cols, layout in ((65, "contiguous"), (24, "channels_first"), (24, "axes_apart"))
        if kind == "layer_norm" or "bias" not in parameters.split()
    ]
    return [case for case in cases if case.parameters or case.parameter_dtype is None]


def kept_axes_cases(kind: str) -> list[Case]:
    """Weight and bias that vary along kept axes, before, between and behind normalized ones."""
    return [
        base.but(
            cols=cols, layout=layout, along=along, parameters=parameters, parameter_dtype=given
        )
        for base in each_type(kind)
        for given in (None, *parameter_types(base.dtype)[1:])
        for parameters in ("weight bias", "weight bias zero_centered")
        for layout, cols, every_along in (
            ("contiguous", 65, ((), (0,))),
            ("rows_reversed", 65, ((0,),)),
            ("heads", 40, ((2,),)),
            ("heads_before_tokens", 40, ((0,), (1,), (0, 2), (0, 1, 2))),
            ("heads_of_a_projection", 40, ((2,), (0, 1))),
            ("channels_first", 24, ((0,), (2,), (0, 3))),
            ("channels_last_in_memory", 24, ((0,), (3,))),
            ("axes_apart", 48, ((0,), (2,))),
        )
        for along in every_along
    ]


def residual_cases(kind: str) -> list[Case]:
    """Calls with a residual, for each path through the kernels; `Case.residual` makes it."""
    return [
        base.but(values=values, cols=cols, layout=layout, parameters=parameters, along=along)
        for base in each_type(kind)
        for values, cols, layout, parameters, along in (
            *(("mixed", cols, "contiguous", "weight bias", None) for cols in (1, 3, 17, 257, 769)),
            ("mean_1e4", 4097, "contiguous", "", None),
            ("ordinary", 65, "contiguous", "weight bias zero_centered", (0,)),
            ("mixed", 40, "rows_reversed", "weight bias", None),
            ("mixed", 40, "heads_of_a_projection", "weight bias", None),
            ("mixed", 24, "channels_first_67", "weight bias", None),
            ("mixed", 24, "channels_last_in_memory", "weight", None),
            ("ordinary", 48, "axes_apart", "weight bias", None),
        )
    ]


def gated_cases(kind: str) -> list[Case]:
    """Calls with a gate, for each path through the kernels; `Case.gate` makes it."""
    return [
        base.but(values=values, cols=cols, layout=layout, parameters=parameters, along=along)
        for base in each_type(kind)
        for values, cols, layout, parameters, along in (
            *(("ordinary", cols, "contiguous", "weight bias", None) for cols in (1, 3, 17, 257)),
            ("mean_1e4", 769, "contiguous", "weight bias", None),
            ("off_zero", 4097, "contiguous", "", None),
            ("ordinary", 65, "contiguous", "weight bias zero_centered", (0,)),
            ("ordinary", 40, "rows_reversed", "bias", None),
            ("ordinary", 40, "heads_of_a_projection", "weight bias", None),
            ("ordinary", 24, "channels_first_67", "weight bias", None),
            ("ordinary", 24, "channels_last_in_memory", "weight", None),
            ("ordinary", 48, "axes_apart", "weight bias", None),
        )
    ]


def quantized_cases(kind: str) -> list[Case]:
    """Calls that quantize, for each path through the kernels."""
    return [
        base.but(
            values=values, cols=cols, layout=layout, parameters=parameters, along=along, rows=rows
        )
        for base in each_type(kind)
        for values, cols, layout, parameters, along, rows in (
            *(
                ("mixed", cols, "contiguous", "weight bias", None, EVERY_KIND + 2)
                for cols in (1, 3, 17, 257, 769)
            ),
            ("mean_1e4", 4097, "contiguous", "", None, None),
            ("ordinary", 65, "contiguous", "weight bias zero_centered", (0,), None),
            ("mixed", 40, "rows_reversed", "weight bias", None, None),
            ("mixed", 40, "heads_of_a_projection", "weight bias", None, None),
            ("mixed", 24, "channels_first_67", "weight bias", None, None),
            ("mixed", 24, "channels_last_in_memory", "weight", None, None),
            ("ordinary", 48, "axes_apart", "weight bias", None, None),
        )
    ]


def of_each_kind(*families: Callable[[str], list[Case]]) -> list[Case]:
    """The cases of these families, for layer norm and for RMS norm, each once."""
    return list(dict.fromkeys(case for kind in KINDS for cases in families for case in cases(kind)))


def front_end_cases(kind: str) -> list[Case]:
    """What a front end to the same kernels as NumPy's can get wrong: layouts, types, options.

    The kernels' arithmetic is judged once, on every kind of values, through NumPy. Here an array
    has a row of each kind.
    """
    mixed = [base.but(values="mixed", dy_values="mixed") for base in each_type(kind)]
    every_row = [base.but(rows=EVERY_KIND + 2) for base in mixed]
    return [
        *(base.but(cols=48, layout=layout) for base in mixed for layout in LAYOUTS),
        *(base.but(cols=cols) for base in every_row for cols in (1, 3, 17, 63, 257, 769, 1025)),
        *(base.but(cols=129, eps=eps) for base in every_row for eps in EPS),
        *(base.but(cols=65537, values="mean_2_to_20", rows=2) for base in mixed),
        *(
            case
            for case in kept_axes_cases(kind)
            if case.layout == "heads"
            or (case.parameters == "weight bias" and case.parameter_dtype is None)
        ),
        *(
            case
            for case in parameter_cases(kind)
            if case.layout == "contiguous" or case.parameters in ("bias", "weight zero_centered")
        ),
    ]


def dense_front_end_cases(kind: str) -> list[Case]:
    """Those for arrays without strides: layouts that differ in nothing else are one."""
    cases = front_end_cases(kind)
    return list({(case.but(layout="any"), case.shape, case.axis): case for case in cases}.values())
