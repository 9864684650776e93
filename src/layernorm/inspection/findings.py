"""What `inspect` found: of each norm, and of the model as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Times:
    """Median seconds of one call: of what the model runs now, and of ours in its place."""

    own: float
    ours: float

    @property
    def gain(self) -> float:
        """How many times as fast ours is."""
        return self.own / self.ours


@dataclass
class Rows:
    """The rows that a norm was given.

    Attributes:
        count: how many there were.
        mean_over_std: the largest |mean| / standard deviation of a row, inf for a row of equal
            elements that are not zero; None for RMS norm, which subtracts no mean. At m, a variance
            that is computed as E[x^2] - E[x]^2 in float32 loses about m^2 / 10^7 of itself, and
            other float32 formulas m / 10^7 of the row.
        typical_mean_over_std: the median.
        below_eps: the share of the rows whose variance (RMS norm: mean square) is at most eps, so
            that eps decides how large y is.
    """

    count: int
    mean_over_std: float | None
    typical_mean_over_std: float | None
    below_eps: float


@dataclass
class Parameter:
    """The elements of a weight or a bias."""

    type: str
    smallest: float
    mean: float
    largest: float


@dataclass
class Norm:
    """One norm of the model, and what was measured in its first call.

    Attributes:
        name: its path in the model; of a function that was called, of the module that called it.
        kind: its class or function.
        computes: "layer_norm" or "rms_norm"; None if it is neither, or `inspect` cannot tell.
        calls: how often one forward of the model calls it.
        x_shape, x_type, y_type: of the call.
        normalized_shape: x's sizes along the normalized axes.
        eps: of the norm.
        share: its part of the model's forward, by time. PyTorch: measured in the model, from 0 to
            1. Keras and Flax: its calls by themselves over the model, which may exceed 1.
        rows: see `Rows`.
        errors: the distance of "y", "dx", "dweight" and "dbias" from float64, in ulp, as
            `layernorm.accuracy` measures it.
        bounds: the largest errors that ours may have, of the same.
        gradient: where dy came from: "the output" of the model, or "random" numbers.
        weight, bias: as used: of a zero-centered weight, 1 + weight.
        dead: units whose weight is at most a thousandth of the median: their y is all but constant.
        convert: "yes" if `convert` takes it, "ours" if our kernels run already, or "no: " and why.
        forward, training: times of a call, and of a call with its backward.
    """

    name: str
    kind: str
    computes: str | None = None
    calls: int = 0
    x_shape: tuple[int, ...] = ()
    normalized_shape: tuple[int, ...] = ()
    x_type: str = ""
    y_type: str = ""
    eps: float | None = None
    share: float | None = None
    rows: Rows | None = None
    errors: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    gradient: str = ""
    weight: Parameter | None = None
    bias: Parameter | None = None
    dead: int | None = None
    convert: str = ""
    forward: Times | None = None
    training: Times | None = None


@dataclass
class Findings:
    """What `inspect` found.

    Attributes:
        model: the model's class.
        framework: with its version.
        device: where the model ran.
        mode: "training" or "inference"; "" where a model has no mode.
        norms: in the order of their first calls; those that were not called come last.
        share: that of all norms in the model's forward, by time.
        forward, training: times of the model, and of its forward and backward: as it is, and with
            every norm that `convert` takes converted, and functions under `accelerate()`.
        notes: what was not measured, and why.
    """

    model: str
    framework: str
    device: str
    mode: str = ""
    norms: list[Norm] = field(default_factory=list)
    share: float | None = None
    forward: Times | None = None
    training: Times | None = None
    notes: list[str] = field(default_factory=list)
