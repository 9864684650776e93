"""docs/specification.md, "Accuracy", in ulp of the definition."""

import numpy as np
import pytest
from calls import backward, forward
from cases import (
    Case,
    dy_cases,
    eps_cases,
    layout_cases,
    of_each_kind,
    parameter_cases,
    value_cases,
    width_cases,
)
from checkers import check_backward, check_forward, judge_gradients

import layernorm.numpy as ours


def each(*cases: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@each(*of_each_kind(width_cases))
def test_y_is_within_its_bound_for_every_width(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(width_cases))
def test_gradients_are_within_their_bounds_for_every_width(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(value_cases))
def test_y_is_within_its_bound_for_every_kind_of_values(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(value_cases))
def test_gradients_are_within_their_bounds_for_every_kind_of_values(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(dy_cases))
def test_gradients_are_within_their_bounds_for_every_kind_of_dy(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(layout_cases))
def test_y_is_within_its_bound_for_every_axis_and_layout(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(layout_cases))
def test_gradients_are_within_their_bounds_for_every_axis_and_layout(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(eps_cases))
def test_y_is_within_its_bound_for_every_eps(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(eps_cases))
def test_gradients_are_within_their_bounds_for_every_eps(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(parameter_cases))
def test_y_is_within_its_bound_for_every_set_of_parameters(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(parameter_cases))
def test_gradients_are_within_their_bounds_for_every_set_of_parameters(case: Case) -> None:
    check_backward(ours, case)


# Each two of kind, type and layout meet.
each_pair = pytest.mark.parametrize(
    ("kind", "dtype", "layout"),
    [
        ("layer_norm", "float32", "contiguous"),
        ("layer_norm", "bfloat16", "channels_first"),
        ("rms_norm", "float32", "channels_first"),
        ("rms_norm", "bfloat16", "contiguous"),
    ],
)


@each_pair
def test_dweight_and_dbias_are_within_their_bounds_for_a_million_rows(kind, dtype, layout) -> None:
    rows = 10**6 if layout == "contiguous" else 10**6 // 15
    check_backward(ours, Case(kind, dtype, cols=5, layout=layout, rows=rows))


# Where the terms of a sum are equal, so are the roundings of its additions, and they add up.
@each_pair
def test_dweight_and_dbias_are_within_their_bounds_for_many_equal_rows(kind, dtype, layout) -> None:
    rows = 150_000 if layout == "contiguous" else 150_000 // 15
    case = Case(  # 21: vectors, and a tail
        kind, dtype, cols=21, layout=layout, rows=rows, parameter_dtype="float32"
    )
    x, dy, weight, bias = case.arrays()
    for each in (x, dy):
        one_row = np.moveaxis(each, case.axis, -1).reshape(-1, case.cols)[0].copy()
        np.moveaxis(each, case.axis, -1)[...] = one_row
    _, stats = forward(ours, case, x, weight, bias)
    judge_gradients(case, backward(ours, case, dy, x, stats, weight), dy, x, weight)
