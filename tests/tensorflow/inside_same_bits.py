"""Run by test_tensorflow.py: the bits are those of `layernorm.numpy`."""

import cases
import pytest
import tensorflow as tf
from as_numpy_tensorflow import AsNumpy
from calls import assert_same_bits, forward_and_backward
from cases import Case
from checkers import check_batch_of_one
from layouts import dense
from values import TYPES

import layernorm
import layernorm.numpy as numpy_front_end


def assert_same_as_numpy(way: AsNumpy, case: Case) -> None:
    arrays = [dense(each) for each in case.arrays()]
    expected = forward_and_backward(numpy_front_end, case, *arrays)
    got = forward_and_backward(way, case, *arrays)
    for name, result in expected.items():
        if name not in ("mean", "rstd", "residual"):
            assert_same_bits(got[name], result, f"{name} of {case.id}")


def of_graphs(kind: str) -> list[Case]:
    """Return every layout and option in one type, and one graph of each of the others.

    A graph is the same for all types, and is traced for each.
    """
    return [
        case
        for case in cases.dense_front_end_cases(kind)
        if case.dtype == "bfloat16" or (case.layout == "contiguous" and case.eps == 1e-5)
    ]


@pytest.mark.parametrize("way", ["eager", "graph"])
@pytest.mark.parametrize("kind", cases.KINDS)
def test_every_case_of_the_table(kind, way) -> None:
    front_end = AsNumpy(way)
    every = cases.dense_front_end_cases(kind)
    if way == "graph":  # half of them for each norm
        every = of_graphs(kind)[cases.KINDS.index(kind) % 2 :: 2]
    for case in every:
        assert_same_as_numpy(front_end, case)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_batch_of_one_and_many_rows(kind, dtype) -> None:
    check_batch_of_one(AsNumpy("eager"), Case(kind, dtype, 769, rows=37))
    # 2503 rows: several blocks of sums, and several threads.
    assert_same_as_numpy(AsNumpy("graph"), Case(kind, dtype, 768, rows=2503))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype, set_num_threads) -> None:
    case = Case(dtype=dtype, cols=768, rows=2503)
    results = []
    for count in (1, 2, 3, 16):
        set_num_threads(count)
        results.append(forward_and_backward(AsNumpy("eager"), case, *case.arrays()))
    for other in results[1:]:
        for name, result in results[0].items():
            assert_same_bits(other[name], result, name)


@pytest.mark.parametrize("dtype", TYPES)
def test_y_is_written_over_an_x_that_nothing_else_reads(dtype) -> None:
    x, _, weight, bias = (
        tf.constant(each) for each in Case(dtype=dtype, cols=769, rows=37).arrays()
    )

    @tf.function
    def twice(x, weight, bias):
        return layernorm.layer_norm(layernorm.layer_norm(x * 2, weight, bias), weight, bias)

    once = numpy_front_end.layer_norm((x * 2).numpy(), weight.numpy(), bias.numpy())
    expected = numpy_front_end.layer_norm(once, weight.numpy(), bias.numpy())
    assert_same_bits(twice(x, weight, bias).numpy(), expected, "y")
