"""docs/specification.md, "Errors": what came, what was expected, what to do; nothing written."""

import numpy as np
import pytest
from bad_calls import (
    BACKWARD,
    BIAS,
    BIAS_OF_FORWARD,
    FORWARD,
    WEIGHT,
    BadCall,
    X,
    check_rejected,
    forward_arguments,
)
from calls import unchanged
from cases import KINDS

import layernorm
import layernorm.numpy as ours


def each(bad_calls: dict[str, BadCall]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bad_call", bad_calls.values(), ids=bad_calls)


@each(FORWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_call_raises_and_leaves_inputs_and_out_unchanged(kind, bad_call) -> None:
    check_rejected(getattr(ours, kind), bad_call, forward_arguments(kind))
    check_rejected(getattr(ours, f"{kind}_forward"), bad_call, forward_arguments(kind))


@each(BIAS_OF_FORWARD)
def test_a_bad_bias_raises_and_leaves_inputs_and_out_unchanged(bad_call) -> None:
    for call in (ours.layer_norm, ours.layer_norm_forward, layernorm.layer_norm):
        check_rejected(call, bad_call, forward_arguments("layer_norm"))


def test_a_bad_call_in_place_leaves_x_unchanged() -> None:
    for bad_call in (*FORWARD.values(), *BIAS_OF_FORWARD.values()):
        if "out" not in bad_call.change and "x" not in bad_call.change:
            x = X.copy()
            right = {"x": x, "weight": WEIGHT, "bias": BIAS, "out": x}
            check_rejected(ours.layer_norm, bad_call, right)


def test_out_that_overlaps_a_parameter_is_an_error() -> None:
    x, memory = X[:1].copy(), np.ones(2048, np.float32)
    for name in ("weight", "bias"):
        with unchanged(memory=memory), pytest.raises(ValueError, match=rf"overlaps {name}"):
            ours.layer_norm(x, **{name: memory[:1024]}, out=memory[512:1536].reshape(1, -1))


def test_out_whose_elements_share_memory_is_an_error() -> None:
    memory = np.zeros(40, np.float32)
    out = np.lib.stride_tricks.as_strided(memory, (4, 8), (16, 4), writeable=True)
    with unchanged(memory=memory), pytest.raises(ValueError, match="overlap"):
        ours.layer_norm(np.ones((4, 8), np.float32), out=out)


@each(BACKWARD)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_call_of_the_backward_raises(kind, bad_call) -> None:
    _, stats = getattr(ours, f"{kind}_forward")(X, WEIGHT)
    right = {"dy": X, "x": X, "stats": stats, "weight": WEIGHT}
    check_rejected(getattr(ours, f"{kind}_backward"), bad_call, right)


def test_stats_of_the_other_function_are_an_error() -> None:
    _, with_mean = ours.layer_norm_forward(X)
    _, without_mean = ours.rms_norm_forward(X)
    with pytest.raises(ValueError, match="rms_norm_forward"):
        ours.rms_norm_backward(X, X, with_mean)
    with pytest.raises(ValueError, match="layer_norm_forward"):
        ours.layer_norm_backward(X, X, without_mean)


def test_stats_of_other_axes_are_an_error() -> None:
    square = X[:, :32]
    _, stats = ours.layer_norm_forward(square, axis=0)
    with pytest.raises(ValueError, match="stats"):
        ours.layer_norm_backward(X, X, stats)


@pytest.mark.parametrize("broken", ["mean", "rstd", "residual"])
def test_stats_changed_to_another_shape_or_type_are_an_error(broken) -> None:
    """A shorter array would be read past its end."""
    changes = [
        lambda a: a[:1],
        lambda a: a.astype(np.float64),
        lambda a: a.ravel(),
        lambda a: a.repeat(2, axis=-1),
    ]
    for change in changes:
        _, stats = ours.layer_norm_forward(X)
        setattr(stats, broken, change(getattr(stats, broken)))
        with pytest.raises((ValueError, TypeError), match=broken):
            ours.layer_norm_backward(X, X, stats)


def test_a_kind_of_array_that_no_front_end_serves_is_a_type_error() -> None:
    class Stranger:
        pass

    for function in (layernorm.layer_norm, layernorm.rms_norm):
        with pytest.raises(TypeError, match=r"Stranger.*np\.asarray"):
            function(Stranger())


@pytest.mark.parametrize("flag", [True, 1, np.True_])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_counts_by_its_truth(kind, flag) -> None:
    normalize = getattr(ours, kind)
    expected = normalize(X, WEIGHT, zero_centered_weight=True)
    np.testing.assert_array_equal(normalize(X, WEIGHT, zero_centered_weight=flag), expected)
    np.testing.assert_array_equal(
        normalize(X, WEIGHT, zero_centered_weight=not flag), normalize(X, WEIGHT)
    )
