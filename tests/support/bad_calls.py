"""Bad calls, and what their errors must say: what came, what was expected, what to do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from calls import unchanged
from layouts import poisoned

X = np.random.default_rng(0).standard_normal((32, 1024)).astype(np.float32)
WEIGHT, BIAS = np.ones(1024, np.float32), np.zeros(1024, np.float32)


class BadCall(NamedTuple):
    change: dict[str, Any]  # to the arguments of a good call
    error: type[Exception]
    words: tuple[str, ...]  # in its message


def of(error: type[Exception], *words: str, **change: Any) -> BadCall:
    return BadCall(change, error, words)


FORWARD = {
    "weight_shape": of(ValueError, "(512,)", "(32, 1024)", "(1024,)", weight=WEIGHT[:512]),
    "weight_that_would_broadcast": of(ValueError, "(1,)", "(1024,)", weight=WEIGHT[:1]),
    "weight_of_two_axes": of(
        ValueError, "(16, 1024)", "(1024,)", weight=WEIGHT[None].repeat(16, 0)
    ),
    "weight_of_three_axes": of(ValueError, "(1, 1, 1024)", "(1024,)", weight=WEIGHT[None, None]),
    "weight_scalar": of(ValueError, "()", "(1024,)", weight=np.float32(1)),
    "weight_type": of(TypeError, "float64", "float32", weight=WEIGHT.astype(np.float64)),
    "weight_list_of_ints": of(TypeError, "int64", "float32", weight=[1] * 1024),
    "axis_too_large": of(ValueError, "2", "-2", "1", axis=2),
    "axis_too_small": of(ValueError, "-3", "-2", "1", axis=-3),
    "axis_twice": of(ValueError, "axis", "twice", axis=(1, 1)),
    "axis_twice_by_sign": of(ValueError, "axis", "twice", axis=(1, -1)),
    "axis_empty": of(ValueError, "axis", "-1", axis=()),
    "axis_none": of(TypeError, "axis", "NoneType", "int", axis=None),
    "axis_float": of(TypeError, "axis", "float", "int", axis=1.0),
    "axis_timedelta": of(TypeError, "axis", "timedelta64", "int", axis=np.timedelta64(1, "s")),
    "axis_text": of(TypeError, "axis", "str", "int", axis="1"),
    "axis_floats": of(TypeError, "axis", "int", axis=(0.0, 1.0)),
    "eps_negative": of(ValueError, "eps", "-1", eps=-1.0),
    "eps_nan": of(ValueError, "eps", "nan", eps=float("nan")),
    "eps_infinite": of(ValueError, "eps", "inf", eps=float("inf")),
    "eps_text": of(TypeError, "eps", "str", eps="1e-5"),
    "eps_none": of(TypeError, "eps", "NoneType", eps=None),
    "eps_array": of(TypeError, "eps", eps=np.ones(3)),
    "eps_complex": of(TypeError, "eps", "complex", eps=1j),
    "out_shape": of(ValueError, "(32, 1023)", "(32, 1024)", out=np.zeros((32, 1023), np.float32)),
    "out_transposed": of(ValueError, "(1024, 32)", "(32, 1024)", out=np.zeros_like(X.T)),
    "out_type": of(TypeError, "float64", "float32", out=np.zeros(X.shape)),
    "out_list": of(TypeError, "list", "ndarray", out=[]),
    "out_read_only": of(ValueError, "read-only", out=np.broadcast_to(np.float32(0), X.shape)),
    "x_without_axes": of(ValueError, "()", "reshape", x=np.float32(1)),
    "x_none": of(TypeError, "object", x=None),
    "x_ragged": of(ValueError, x=[[1.0], [1.0, 2.0]]),
}
BIAS_OF_FORWARD = {
    "bias_shape": of(ValueError, "bias", "(512,)", "(32, 1024)", "(1024,)", bias=BIAS[:512]),
    "bias_type": of(TypeError, "bias", "float64", "float32", bias=BIAS.astype(np.float64)),
}
BACKWARD = {
    "dy_shape": of(ValueError, "dy", "(32, 1023)", "(32, 1024)", dy=X[:, 1:]),
    "dy_that_would_broadcast": of(ValueError, "dy", "(1024,)", "(32, 1024)", dy=X[0]),
    "dy_type": of(TypeError, "dy", "float64", "float32", dy=X.astype(np.float64)),
    "x_shape": of(ValueError, "(16, 1024)", "(32, 1024)", x=X[:16]),
    "x_type": of(TypeError, x=X.astype(np.float16)),
    "x_integers": of(TypeError, "int64", x=X.astype(np.int64)),
    "x_of_fewer_axes": of(ValueError, "(1024,)", x=X[0], dy=X[0]),
    "weight_shape": of(ValueError, "weight", "(512,)", "(1024,)", weight=WEIGHT[:512]),
    "weight_type": of(TypeError, "weight", "float64", "float32", weight=WEIGHT.astype(np.float64)),
    "stats_tuple": of(TypeError, "stats", "tuple", "Stats", stats=(X, X)),
    "stats_none": of(TypeError, "stats", "NoneType", "Stats", stats=None),
}


def forward_arguments(kind: str) -> dict[str, Any]:
    """Arguments of a good call, with an `out` in which every write shows."""
    arguments = {"x": X, "weight": WEIGHT, "out": poisoned(X.shape, X.dtype)}
    return arguments | ({"bias": BIAS} if kind == "layer_norm" else {})


def check_rejected(call: Callable[..., Any], bad_call: BadCall, right: dict[str, Any]) -> None:
    """The bad_call gets its error, whose text has its words; every array keeps its bits."""
    arguments = right | bad_call.change
    arrays = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    with unchanged(**arrays), pytest.raises(bad_call.error) as raised:
        call(**arguments)
    text = str(raised.value)
    assert [word for word in bad_call.words if word not in text] == [], text
