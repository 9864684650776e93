"""docs/specification.md, "Types": of inputs, outputs, statistics and sums."""

import numpy as np
import pytest
from calls import forward, forward_and_backward
from cases import KINDS, Case
from checkers import check_backward
from values import TYPES, dtype_of, parameter_types, statistics_type

import layernorm.numpy as ours

PAIRS = [(dtype, parameter) for dtype in TYPES for parameter in parameter_types(dtype)]
MIXED = [(dtype, parameter) for dtype in TYPES for parameter in TYPES]


@pytest.mark.parametrize(("dtype", "parameter_dtype"), PAIRS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_result_has_its_type(kind, dtype, parameter_dtype) -> None:
    case = Case(kind, dtype, cols=33, parameter_dtype=parameter_dtype)
    results = forward_and_backward(ours, case, *case.arrays())
    statistics, parameter = statistics_type(dtype), dtype_of(parameter_dtype)
    expected = {"y": dtype_of(dtype), "rstd": statistics, "dx": dtype_of(dtype)}
    expected |= {"dweight": parameter}
    if kind == "layer_norm":
        expected |= {"mean": statistics, "residual": statistics, "dbias": parameter}
    assert {name: result.dtype for name, result in results.items()} == expected


@pytest.mark.parametrize(("dtype", "parameter_dtype"), PAIRS)
def test_gradients_have_the_type_of_the_bias_where_there_is_no_weight(
    dtype, parameter_dtype
) -> None:
    case = Case(dtype=dtype, cols=33, parameters="bias", parameter_dtype=parameter_dtype)
    results = forward_and_backward(ours, case, *case.arrays())
    assert results["dbias"].dtype == dtype_of(parameter_dtype)
    assert results["dweight"].dtype == dtype_of(parameter_dtype)


@pytest.mark.parametrize("dtype", TYPES)
def test_results_have_native_byte_order(dtype) -> None:
    case = Case(dtype=dtype, cols=33, layout="byte_swapped")
    for name, result in forward_and_backward(ours, case, *case.arrays()).items():
        assert result.dtype.isnative, name


@pytest.mark.parametrize(
    ("dtype", "parameter_dtype"), [pair for pair in MIXED if pair not in PAIRS]
)
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_parameters_of_any_other_type_are_rejected(dtype, parameter_dtype, which) -> None:
    x = np.ones((2, 4), dtype_of(dtype))
    parameter = np.ones(4, dtype_of(parameter_dtype))
    with pytest.raises(TypeError, match=rf"{which}.*{parameter_dtype}.*{dtype}"):
        ours.layer_norm(x, **{which: parameter})


def test_weight_and_bias_of_two_types_are_rejected() -> None:
    x, weight = np.ones((2, 4), np.float16), np.ones(4, np.float16)
    with pytest.raises(TypeError, match=r"weight.*float16.*bias.*float32"):
        ours.layer_norm(x, weight, weight.astype(np.float32))


@pytest.mark.parametrize("parameter_dtype", [None, "float32"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_first_67"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_16_bit_parameters_are_accumulated_in_float32(
    kind, dtype, layout, parameter_dtype
) -> None:
    # A bfloat16 sum of addends near 0.5 stops growing at 128, after some 256 of these rows.
    case = Case(kind, dtype, cols=9, layout=layout, rows=20011, parameter_dtype=parameter_dtype)
    check_backward(ours, case.but(rows=301) if layout == "channels_first_67" else case)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_of_16_bit_x_are_float32(dtype) -> None:
    # 2049 ones and a zero: no 16-bit type holds the mean, 2049 / 2050.
    x = np.ones((1, 2050), dtype_of(dtype))
    x[0, 5] = 0
    _, stats = forward(ours, Case(dtype=dtype, cols=2050), x, None, None)
    assert stats.mean.item() == np.float32(2049 / 2050)
    variance = 2049 / 2050 / 2050
    np.testing.assert_allclose(stats.rstd.item(), (variance + 1e-5) ** -0.5, rtol=3e-7)
