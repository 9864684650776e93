"""The suite's own checks catch wrong implementations, and let right ones pass.

Each fault of faults.py and faults_of_manners.py stands here beside a check that has to catch it,
with the case that brings it out.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import checkers
import faults
import faults_of_manners as manners
import mistakes
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


def refusal(name: str) -> Check:
    right = mistakes.forward_arguments("layer_norm")
    return lambda implementation: mistakes.check_refused(
        implementation.layer_norm, mistakes.FORWARD[name], right
    )


def refusal_of_integers(implementation: Any) -> None:
    checkers.check_other_types_are_refused(implementation, "layer_norm", np.dtype(np.int64))


NOT_FINITE = checkers.check_a_row_that_is_not_finite_stays_alone
CONSTANT = checkers.check_constant_rows_give_bias

CAUGHT: dict[type, Check] = {
    faults.EpsOutsideTheRoot: forward(eps=1e-3),
    faults.EpsLeftOut: forward(eps=1e-3),
    faults.UnbiasedVariance: forward(cols=769),
    faults.MeanOfSquaresMinusSquareOfMean: forward(values="mean_1e2"),
    faults.SquaresOverflow: forward(values="scale_1e30"),
    faults.SumOverflows: forward(values="near_largest_one_sign"),
    faults.StatisticsIn16Bits: forward(dtype="float16"),
    faults.Float32MeanAlone: forward(values="mean_1e4"),
    faults.ResidualDroppedInBackward: backward(values="mean_1e4"),
    faults.StatisticsOfAnotherRow: forward(values="mixed"),
    faults.TailLeftOutOfTheVariance: forward(cols=769),
    faults.PaddingInTheVariance: forward(cols=769, values="mean_1e2"),
    faults.SubnormalsTakenForZero: forward(values="subnormals", eps=0.0),
    faults.NanSwallowed: by(NOT_FINITE, np.nan, cols=7),
    faults.InfinityMakesTheOthersZero: by(NOT_FINITE, np.inf, kind="rms_norm", cols=7),
    faults.NanSpreadsOverTheBatch: by(NOT_FINITE, np.nan, cols=7),
    faults.ZeroByZeroInConstantRows: by(CONSTANT, eps=0.0),
    faults.RoundedMeanOfConstantRows: by(CONSTANT, cols=1000),
    faults.BiasBeforeWeight: forward(),
    faults.BiasForgottenWithoutWeight: forward(parameters="bias"),
    faults.ZeroCenteredWeightNotShifted: forward(parameters="weight bias zero_centered"),
    faults.ZeroCenteredWeightRoundedTo16Bits: forward(
        dtype="bfloat16", parameters="weight zero_centered"
    ),
    faults.RoundedTwice: forward(dtype="bfloat16"),
    faults.BitsCutOffInsteadOfRounded: forward(dtype="bfloat16"),
    faults.RmsNormCentered: forward(kind="rms_norm", cols=17),
    faults.MeanOfGDropped: backward(),
    faults.ProjectionDropped: backward(),
    faults.MeanOfGInRmsNorm: backward(kind="rms_norm"),
    faults.WeightLeftOutOfDx: backward(),
    faults.GradientSumsOverflow: backward(dy_values="near_largest", cols=65),
    faults.ParametersAveragedOverRows: backward(),
    faults.ParametersSummedIn16Bits: backward(dtype="bfloat16", cols=9, rows=20011),
    faults.ParametersSummedOneByOne: backward(cols=9, rows=20011),
    faults.LastRowsLeftOutOfParameters: backward(cols=9),
    faults.LastAxisOnly: forward(layout="last_two_axes", cols=48),
    faults.StridesIgnored: forward(layout="every_second_row"),
    faults.BitsDependOnTheBatch: by(checkers.check_batch_of_one, rows=37),
    faults.BitsDependOnThePlace: by(checkers.check_place_of_a_row, rows=37),
    faults.BitsDependOnAlignment: by(checkers.check_alignment, cols=67),
    faults.BitsDependOnThreads: thread_counts,
    faults.BitsDependOnTheRun: thread_counts,
    manners.WritesToX: forward(),
    manners.WritesToDy: backward(),
    manners.LeavesTheTailOfOut: by(checkers.check_every_element_is_written, cols=67),
    manners.IgnoresOut: by(checkers.check_every_element_is_written, cols=67),
    manners.ReadsWhatItWroteInPlace: by(checkers.check_in_place, cols=67),
    manners.PromotedToTheParametersType: forward(dtype="bfloat16", parameter_dtype="float32"),
    manners.GradientsInTheTypeOfX: backward(dtype="bfloat16", parameter_dtype="float32"),
    manners.StatisticsInTheTypeOfX: by(checkers.check_statistics, dtype="float16"),
    manners.AcceptsIntegers: refusal_of_integers,
    manners.AcceptsPartialOverlap: by(checkers.check_partial_overlap_is_refused, cols=8),
    manners.AcceptsNegativeEps: refusal("eps_negative"),
    manners.BroadcastsTheWeight: refusal("weight_that_would_broadcast"),
    manners.WritesOutBeforeItRefuses: refusal("eps_negative"),
    manners.SaysNothing: refusal("eps_negative"),
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
        for module in (faults, manners)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    }
    assert written - set(CAUGHT) == {faults.BitsOfTheMean, manners.Wrapped}
