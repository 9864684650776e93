"""The compiled module. Most functions do not check their arguments: call a front end instead."""

from typing import Any, overload

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]
_Fields = tuple[Any, ...]  # of Stats: mean, rstd, residual, axis, eps, parameter_type

@overload
def try_forward(
    x: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    out: object,
    centered: bool,
    zero_centered_weight: bool,
    /,
) -> _Array | None:
    """Return y for contiguous arrays, normalized over their last axes; (y, total) with a residual.

    None, with nothing touched, for anything else. `axis` is an int, or a tuple or a list of ints in
    any order; negative ones count from the end. `eps` is a float, an int or a NumPy float.
    """

@overload
def try_forward(
    x: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    out: object,
    centered: bool,
    zero_centered_weight: bool,
    residual: object,
    total: object,
    /,
) -> tuple[_Array, _Array] | None: ...
@overload
def try_forward_with_statistics(
    x: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    out: object,
    centered: bool,
    zero_centered_weight: bool,
    /,
) -> tuple[_Array, _Fields] | None:
    """Return (y, fields) where `try_forward` returns y: the statistics are `Stats(*fields)`.

    With a residual (y, total, fields).
    """

@overload
def try_forward_with_statistics(
    x: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    out: object,
    centered: bool,
    zero_centered_weight: bool,
    residual: object,
    total: object,
    /,
) -> tuple[_Array, _Array, _Fields] | None: ...
def try_layer_forward(
    x: object,
    weight: object,
    bias: object,
    normalized_shape: object,
    eps: object,
    out: object,
    centered: bool,
    zero_centered_weight: bool,
    residual: object = None,
    total: object = None,
    /,
) -> Any:
    """Do the same over x's last axes, None unless their sizes are `normalized_shape`."""

def try_backward(
    dy: object,
    x: object,
    mean: object,
    rstd: object,
    residual: object,
    weight: object,
    axes: object,
    eps: object,
    parameter_type: object,
    need_dx: bool,
    need_dweight: bool | None,
    need_dbias: bool,
    centered: bool,
    zero_centered_weight: bool,
    dtotal: object = None,
    /,
) -> tuple[_Array | None, _Array | None, _Array | None] | None:
    """Return (dx, dweight, dbias) for contiguous arrays; None for anything else.

    `axes` are x's last, sorted and not negative, as `Stats` holds them.
    """

def forward(
    centered: bool,
    zero_centered_weight: bool,
    eps: float,
    axes: tuple[int, ...],
    varying: tuple[int, ...],
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    y: _Array,
    mean: _Array | None,
    rstd: _Array | None,
    residual: _Array | None,
    addend: _Array | None,
    total: _Array | None,
    gate: _Array | None,
    is_silu: bool,
    norm_before_gate: bool,
    /,
) -> bool:
    """Write y, and the statistics that are not None; with an addend those of total, the sum.

    With a gate, no addend.

    weight and bias have the `varying` axes of x and then the normalized ones; they and the
    statistics are contiguous. False, with nothing done, where another array must be copied first.
    """

def forward_quantized(
    centered: bool,
    zero_centered_weight: bool,
    eps: float,
    axes: tuple[int, ...],
    varying: tuple[int, ...],
    x: _Array,
    weight: _Array | None,
    bias: _Array | None,
    q: _Array,
    quantized_type: int,
    scales: _Array | None,
    given_scale: _Array | None,
    /,
) -> bool:
    """Write q, of single bytes, and the scales of the rows, or with a given scale q alone.

    `quantized_type` is the place of q's type in `spec.QUANTIZED_TYPES`; the scales are contiguous.
    False, with nothing done, where another array must be copied first.
    """

def backward(
    centered: bool,
    zero_centered_weight: bool,
    eps: float,
    axes: tuple[int, ...],
    varying: tuple[int, ...],
    x: _Array,
    dy: _Array,
    weight: _Array | None,
    mean: _Array | None,
    rstd: _Array,
    residual: _Array | None,
    dx: _Array | None,
    dweight: _Array | None,
    dbias: _Array | None,
    dtotal: _Array | None,
    bias: _Array | None,
    gate: _Array | None,
    dgate: _Array | None,
    is_silu: bool,
    norm_before_gate: bool,
    /,
) -> bool:
    """Write those of dx, dweight, dbias and dgate that are not None; False as `forward` does.

    The bias is needed for dgate alone. With a gate, no dtotal.
    """

def empty(shape: tuple[int, ...], dtype: np.dtype[Any], /) -> _Array:
    """Return an uninitialized array; a large one in memory from the buffer cache."""

def isa() -> str:
    """Name the instruction set in use."""

def isas() -> list[str]:
    """Name the instruction sets that this processor supports, best last."""

def get_num_threads() -> int:
    """Return how many threads the kernels use at most."""

def set_num_threads(n: int, /) -> None:
    """Let the kernels use at most `n` threads. The results do not depend on it."""

def tensorflow_load(library: str, /) -> None:
    """Find TensorFlow's C functions in its loaded library, and define the operations.

    Raises: ImportError where there are none.
    """

def tensorflow_bound_threads(most: int, /) -> None:
    """Let the operations use at most `most` threads; 0 for the pool's own bound."""

def torch_load(library: str, parts: dict[str, object], /) -> None:
    """Find PyTorch's C functions in its loaded library, and define the operators."""

def torch_override_aten(on: bool, /) -> None:
    """Register the kernels for PyTorch's native_layer_norm, or remove them again."""

def torch_try_forward(
    x: object,
    weight: object,
    bias: object,
    normalized_shape: object,
    eps: object,
    centered: bool,
    zero_centered_weight: bool,
    residual: object = None,
    gate: object = None,
    is_silu: bool = ...,
    norm_before_gate: bool = ...,
    /,
) -> Any:
    """Return y for contiguous tensors on the CPU, normalized over their last axes.

    (y, rest) where a gradient is wanted; with a residual (y, total, rest), rest None where none is.
    The last three arguments go together, beside a residual of None.
    None, with nothing done, for anything else. eps is a float, or for RMS normalization None.
    """

def torch_try_forward_over_axes(
    x: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    centered: bool,
    zero_centered_weight: bool,
    residual: object = None,
    gate: object = None,
    is_silu: bool = ...,
    norm_before_gate: bool = ...,
    /,
) -> Any:
    """Do what `torch_try_forward` does, with `axis` and `eps` as `try_forward` takes them."""

def torch_try_forward_into(
    x: object,
    weight: object,
    bias: object,
    axis: object,
    eps: object,
    centered: bool,
    zero_centered_weight: bool,
    out: object,
    /,
) -> bool:
    """Write y into `out` and return True where `torch_try_forward_over_axes` would return it.

    False, with nothing done, for anything else, and where a gradient is wanted.
    """

def torch_is_unwatched() -> bool:
    """Tell whether no mode, transform, tracer, profiler or forward-mode level sees operators."""

def torch_try_backward(
    x: object,
    weight: object,
    rest: tuple[Any, ...],
    dy: object,
    need: tuple[bool, ...],
    dtotal: object = None,
    gate: object = None,
    is_silu: bool = ...,
    norm_before_gate: bool = ...,
    /,
) -> Any:
    """Return (dx, dweight, dbias, None) for contiguous tensors; None for anything else.

    `rest` is what the forward returned beside y; `need` says which are wanted. With the last three
    arguments, dgate is a fifth result, and dtotal None.
    """

def xla_handlers() -> dict[str, object]:
    """Return a capsule for each call that XLA may make, by name."""
