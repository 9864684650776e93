"""The contract, kept by the PyTorch front end: the same checks that the NumPy front end passes."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from as_numpy_torch import AsNumpy, to_array, to_tensor  # noqa: E402
from calls import assert_same_bits, forward_and_backward  # noqa: E402
from cases import KINDS, Case, front_end_cases, kept_axes_cases, of_each_kind  # noqa: E402
from checkers import check_backward, check_batch_of_one, check_forward  # noqa: E402
from values import TYPES  # noqa: E402

import layernorm.numpy as numpy_front_end  # noqa: E402
import layernorm.torch as ours  # noqa: E402

WAYS = {"functions": AsNumpy(public=True), "operators": AsNumpy(public=False)}

each_way = pytest.mark.parametrize("way", WAYS)


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@each(of_each_kind(front_end_cases))
@each_way
def test_results_are_within_their_bounds(way, case: Case) -> None:
    check_forward(WAYS[way], case)
    check_backward(WAYS[way], case)


# Contiguous, so that both front ends read the same memory. 2503 rows: several blocks of sums.
SAME = [
    Case(kind, dtype, cols, values=values, rows=rows, parameter_dtype=parameter_dtype)
    for kind in KINDS
    for dtype, parameter_dtype in (*((each, None) for each in TYPES), ("bfloat16", "float32"))
    for cols, rows, values in (
        *((1, 5, "ordinary"), (17, 5, "mixed"), (768, 37, "mixed"), (769, 2503, "mean_1e4")),
        (4097, 3, "ordinary"),
    )
] + [
    Case(kind, dtype, 31, layout=layout, rows=rows)
    for kind in KINDS
    for dtype in TYPES
    for layout, rows in (("channels_first", 2), ("channels_first_67", 101), ("first_axis", None))
]
# In any memory but that which the operators read with moved axes.
SAME += [
    case
    for case in of_each_kind(kept_axes_cases)
    if case.layout != "channels_last_in_memory" and case.parameter_dtype is None
]


@each(SAME)
@each_way
def test_the_bits_are_those_of_the_numpy_front_end(way, case: Case) -> None:
    arrays = case.arrays()
    x, dy, weight, bias = arrays.x, arrays.dy, arrays.weight, arrays.bias
    expected = forward_and_backward(numpy_front_end, case, x, dy, weight, bias)
    got = forward_and_backward(WAYS[way], case, x, dy, weight, bias)
    for name, result in expected.items():
        assert_same_bits(got[name], result, name)


@pytest.mark.parametrize("cols", [1, 17, 257, 769])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(kind, dtype, cols) -> None:
    check_batch_of_one(WAYS["functions"], Case(kind, dtype, cols, rows=37))


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_do_not_depend_on_the_number_of_threads(kind, dtype, torch_threads) -> None:
    case = Case(kind, dtype, cols=768, rows=2503)
    x, dy, weight, bias = case.arrays()
    results = []
    for count in (1, 2, 3, 16):
        torch_threads(count)
        results.append(forward_and_backward(WAYS["functions"], case, x, dy, weight, bias))
    for other in results[1:]:
        for name, result in results[0].items():
            assert_same_bits(other[name], result, name)


def test_arrays_become_tensors_and_come_back() -> None:
    for dtype in TYPES:
        x = Case(dtype=dtype, cols=5).arrays().x
        assert_same_bits(to_array(to_tensor(x)), x, dtype)
    assert to_tensor(np.arange(6.0)[::-2]).tolist() == [5.0, 3.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", [None, 0])  # the fast path, and the operators
def test_the_default_eps_of_rms_norm_is_float32s_for_16_bits(dtype, axis) -> None:
    x = 1e-3 * torch.randn(6, 6).to(dtype)  # mean squares near float32's eps, below a 16-bit one
    expected = ours.rms_norm(x, (6,), eps=torch.finfo(torch.float32).eps, axis=axis)
    assert torch.equal(ours.rms_norm(x, (6,), axis=axis), expected)
