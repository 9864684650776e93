"""The suite's own checks catch wrong implementations, and let right ones pass.

CAUGHT has each fault of faults.py and interface_faults.py with a check that must catch it, on a
case that shows it.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import bad_calls
import checkers
import faults
import interface_faults
import numpy as np
import pytest
from cases import Case
from model import Model

import layernorm
import layernorm.numpy as ours

Check = Callable[[Any], None]


def by(check: Callable[..., None], *more: Any, **case: Any) -> Check:
    """A check of `checkers` on a case."""
    return lambda implementation: check(implementation, Case(**case), *more)


def forward(**case: Any) -> Check:
    return by(checkers.check_forward, **case)


def backward(**case: Any) -> Check:
    return by(checkers.check_backward, **case)


def thread_counts(implementation: Any) -> None:
    case, counts = Case(cols=7, rows=20011), (1, 2, 3, 16)
    checkers.check_thread_counts(implementation, case, implementation.set_num_threads, counts)


def rejection(name: str) -> Check:
    right = bad_calls.forward_arguments("layer_norm")
    return lambda implementation: bad_calls.check_rejected(
        implementation.layer_norm, bad_calls.FORWARD[name], right
    )


def rejection_of_integers(implementation: Any) -> None:
    checkers.check_other_types_are_rejected(implementation, "layer_norm", np.dtype(np.int64))


NOT_FINITE = checkers.check_a_row_that_is_not_finite_stays_alone
CONSTANT = checkers.check_constant_rows_give_bias

CAUGHT: dict[type, Check] = {
    faults.EpsOutsideTheRoot: forward(eps=1e-3),
    faults.EpsOmitted: forward(eps=1e-3),
    faults.UnbiasedVariance: forward(cols=769),
    faults.MeanOfSquaresMinusSquareOfMean: forward(values="mean_1e2"),
    faults.SquaresOverflow: forward(values="scale_1e30"),
    faults.SumOverflows: forward(values="near_largest_one_sign"),
    faults.StatisticsIn16Bits: forward(dtype="float16"),
    faults.Float32MeanAlone: forward(values="mean_1e4"),
    faults.ResidualDroppedInBackward: backward(values="mean_1e4"),
    faults.StatisticsOfAnotherRow: forward(values="mixed"),
    faults.TailMissingFromTheVariance: forward(cols=769),
    faults.PaddingInTheVariance: forward(cols=769, values="mean_1e2"),
    faults.SubnormalsFlushedToZero: forward(values="subnormals", eps=0.0),
    faults.NanIgnored: by(NOT_FINITE, np.nan, cols=7),
    faults.InfinityMakesTheOthersZero: by(NOT_FINITE, np.inf, kind="rms_norm", cols=7),
    faults.NanSpreadsOverTheBatch: by(NOT_FINITE, np.nan, cols=7),
    faults.ZeroByZeroInConstantRows: by(CONSTANT, eps=0.0),
    faults.RoundedMeanOfConstantRows: by(CONSTANT, cols=1000),
    faults.BiasBeforeWeight: forward(),
    faults.BiasIgnoredWithoutWeight: forward(parameters="bias"),
    faults.ZeroCenteredWeightNotShifted: forward(parameters="weight bias zero_centered"),
    faults.ZeroCenteredWeightRoundedTo16Bits: forward(
        dtype="bfloat16", parameters="weight zero_centered"
    ),
    faults.RoundedTwice: forward(dtype="bfloat16"),
    faults.TruncatedInsteadOfRounded: forward(dtype="bfloat16"),
    faults.RmsNormCentered: forward(kind="rms_norm", cols=17),
    faults.MeanOfGDropped: backward(),
    faults.ProjectionDropped: backward(),
    faults.MeanOfGInRmsNorm: backward(kind="rms_norm"),
    faults.WeightMissingFromDx: backward(),
    faults.GradientSumsOverflow: backward(dy_values="near_largest", cols=65),
    faults.ParametersAveragedOverRows: backward(),
    faults.ParametersSummedIn16Bits: backward(dtype="bfloat16", cols=9, rows=20011),
    faults.ParametersSummedOneByOne: backward(cols=9, rows=20011),
    faults.LastRowsMissingFromParameters: backward(cols=9),
    faults.FirstMembersParametersForAll: forward(layout="heads", along=(2,)),
    faults.ParametersSummedOverAllMembers: backward(layout="heads", along=(0,)),
    faults.ParametersSummedOverTheMembersAxis: backward(layout="heads", along=(0,)),
    faults.SumNormalizedBeforeRounding: by(checkers.check_residual, dtype="bfloat16"),
    faults.DtotalDropped: by(checkers.check_dtotal),
    faults.GateOnTheOtherSide: by(checkers.check_every_gating),
    faults.NormRoundedBeforeTheGate: by(checkers.check_every_gating, dtype="bfloat16"),
    faults.DerivativeOfTheOtherActivation: by(checkers.check_every_gating),
    faults.DgateWithoutBias: by(checkers.check_every_gating),
    faults.DxRoundedBeforeDtotalIsAdded: by(checkers.check_dtotal, dtype="bfloat16"),
    faults.LastAxisOnly: forward(layout="last_two_axes", cols=48),
    faults.StridesIgnored: forward(layout="every_second_row"),
    faults.BitsDependOnTheBatch: by(checkers.check_batch_of_one, rows=37),
    faults.BitsDependOnThePlace: by(checkers.check_place_of_a_row, rows=37),
    faults.BitsDependOnAlignment: by(checkers.check_alignment, cols=67),
    faults.BitsDependOnThreads: thread_counts,
    faults.BitsDependOnTheRun: thread_counts,
    interface_faults.WritesToX: forward(),
    interface_faults.WritesToDy: backward(),
    interface_faults.LeavesTheTailOfOut: by(checkers.check_every_element_is_written, cols=67),
    interface_faults.IgnoresOut: by(checkers.check_every_element_is_written, cols=67),
    interface_faults.ReadsWhatItWroteInPlace: by(checkers.check_in_place, cols=67),
    interface_faults.PromotedToTheParametersType: forward(
        dtype="bfloat16", parameter_dtype="float32"
    ),
    interface_faults.GradientsInTheTypeOfX: backward(dtype="bfloat16", parameter_dtype="float32"),
    interface_faults.StatisticsInTheTypeOfX: by(checkers.check_statistics, dtype="float16"),
    interface_faults.AcceptsIntegers: rejection_of_integers,
    interface_faults.AcceptsPartialOverlap: by(checkers.check_partial_overlap_is_rejected, cols=8),
    interface_faults.AcceptsNegativeEps: rejection("eps_negative"),
    interface_faults.BroadcastsTheWeight: rejection("weight_that_would_broadcast"),
    interface_faults.WritesOutBeforeItRefuses: rejection("eps_negative"),
    interface_faults.GivesNoReason: rejection("eps_negative"),
}
each = pytest.mark.parametrize(
    ("fault", "check"), CAUGHT.items(), ids=[fault.__name__ for fault in CAUGHT]
)


@each
def test_the_fault_is_caught(fault, check) -> None:
    # pytest.raises() does not fail with an AssertionError where nothing was raised.
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(fault())


@each
def test_the_check_lets_our_implementation_pass(fault, check) -> None:
    check(SimpleNamespace(**vars(ours), set_num_threads=layernorm.set_num_threads))


@pytest.mark.parametrize(
    "check",
    [pytest.param(c, id=f.__name__) for f, c in CAUGHT.items() if issubclass(f, Model)],
)
def test_the_check_lets_another_right_implementation_pass(check) -> None:
    right = Model()
    right.set_num_threads = lambda count: None
    check(right)


def test_every_fault_has_a_check() -> None:
    written = {
        member
        for module in (faults, interface_faults)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    }
    assert written - set(CAUGHT) == {faults.BitsOfTheMean, interface_faults.Wrapped}
