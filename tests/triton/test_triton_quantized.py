"""Norms in 8 bits on a GPU: q and the scales are exactly what the reference makes of y."""

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from as_numpy_triton import DEVICE, Kernels
from calls import assert_same_bits
from cases import KINDS, Case, of_each_kind, quantized_cases
from checkers import check_quantized
from layouts import Array
from triton_interpreter import INTERPRETED, every
from values import TYPES, dtype_of, statistics_type

import layernorm.torch as ours
from layernorm import reference, spec
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import operators as gpu
from layernorm.torch.gpu import quantized as gpu_quantized

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU here", allow_module_level=True)

kernels = Kernels()
each_kind = pytest.mark.parametrize("kind", KINDS)
each_quantized_type = pytest.mark.parametrize("q_type", spec.QUANTIZED_TYPES)


@pytest.mark.parametrize("case", every(7, of_each_kind(quantized_cases)), ids=lambda case: case.id)
def test_q_and_the_scales_are_those_of_y(case: Case) -> None:
    check_quantized(kernels, case)


# Long rows, whose y goes through memory.
SMALL = [
    Case("layer_norm", "float32", 300, "near_largest", rows=2),
    Case("layer_norm", "bfloat16", 304, "mean_1e4", rows=2, along=(0,)),
    Case("rms_norm", "float64", 260, "subnormals", rows=2, parameters=""),
    Case("rms_norm", "float32", 40, "mixed", "channels_first"),
    Case("layer_norm", "float16", 40, "mean_1e4", "first_axis"),
    Case("layer_norm", "float32", 160, layout="axes_apart"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_q_and_the_scales_of_long_rows_are_those_of_y(case: Case, small_tiles) -> None:
    check_quantized(kernels, case)


def assert_those_of(y: Array, q_type: str, scale: float | None = None) -> Array:
    """Check q and the scale of one row y, the RMS norm of ones with weight y; return q."""
    ones = np.ones((1, len(y)), y.dtype)
    options = {"eps": 0.0, "dtype": q_type, "scale": scale}
    result = kernels.quantized_rms_norm(ones, y, **options)
    q, *scales = [result] if scale is not None else result
    expected, expected_scales = reference.quantize(y[None], q_type, scale)
    q = q.astype(np.float64)
    np.testing.assert_array_equal(q, expected)
    if q_type != "int8":
        differ = (np.signbit(q) != np.signbit(expected)) & ~np.isnan(expected)
        assert not differ.any(), "the sign of a zero"
    for each in scales:
        np.testing.assert_array_equal(each.astype(np.float64), expected_scales)
    return q[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_quantized_type
def test_every_number_midpoint_and_neighbor_is_rounded_to_nearest_even(dtype, q_type) -> None:
    every_byte = np.arange(256, dtype=np.uint8).view(q_type).astype(np.float64)
    numbers = np.sort(every_byte[np.isfinite(every_byte)])
    beyond = [-1.03 * spec.QUANTIZED_TYPES[q_type], -130, 130, 1e30]
    numbers = np.concatenate([numbers, (numbers[1:] + numbers[:-1]) / 2, beyond]).astype(dtype)
    beside = [np.nextafter(numbers, numbers.dtype.type(to)) for to in (-1e38, 1e38)]
    q = assert_those_of(np.concatenate([numbers, *beside]), q_type, scale=1.0)
    most = spec.QUANTIZED_TYPES[q_type]
    assert (q.min(), q.max()) == (-128 if q_type == "int8" else -most, most)


# 300: in small tiles a long row.
@pytest.mark.parametrize("cols", [3, 300])
@pytest.mark.parametrize("dtype", TYPES)
@each_quantized_type
def test_zeros_nan_infinity_and_tiny_numbers(dtype, q_type, cols, small_tiles) -> None:
    tiny = float(np.finfo(statistics_type(dtype)).smallest_normal)
    most = spec.QUANTIZED_TYPES[q_type]
    rows = [[0, -0.0, 0], [1, np.nan, -2], [1, -np.inf, -2], [tiny, -3 * tiny, 0], [most, -1.5, 1]]
    for row in rows if cols == 3 else rows[1:3]:
        y = np.zeros(cols, dtype_of(dtype))
        y[-3:] = row
        y.view(f"i{y.itemsize}")[np.isnan(y)] = -1  # a GPU's NaN has ones for all bits
        assert_those_of(y, q_type)
    assert_those_of(y, q_type, scale=0.5)


def test_y_is_rounded_to_the_type_of_x_first() -> None:
    weight = np.array([65504, 1], np.float16)
    x = np.array([[1, 0]], np.float16)  # norm: sqrt(2), 0
    q, scales = kernels.quantized_rms_norm(x, weight, eps=0.0)
    assert np.isinf(scales).all()
    assert q.tolist() == [[0, 0]]


# 17: one program a row. 300: in small tiles a long row.
@pytest.mark.parametrize("cols", [17, 300])
def test_a_batch_of_one_gives_the_bits_of_its_row_in_a_batch(cols, small_tiles) -> None:
    x, _, weight, bias = Case(cols=cols, rows=3).arrays()
    batch = kernels.quantized_layer_norm(x, weight, bias)
    for got, expected in zip(
        kernels.quantized_layer_norm(x[1:2], weight, bias), batch, strict=True
    ):
        assert_same_bits(got, expected[1:2], "a row")


def a_tensor(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


LAYOUTS = {
    "channels last": (a_tensor(2, 6, 3, 35).to(memory_format=torch.channels_last), 1),
    "part of a projection": (a_tensor(2, 7, 5, 16)[:, :, 1], -1),
    "not aligned": (a_tensor(81)[1:].view(5, 16), -1),
    "long rows, transposed": (a_tensor(2, 3, 300).transpose(0, 1), -1),  # in small tiles
    "long rows, channels last": (a_tensor(2, 5, 40).transpose(1, 2), 1),
    "long rows, channels first with gaps": (a_tensor(2, 41, 5)[:, 1:], 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_q_is_contiguous_whatever_x_is(name, small_tiles) -> None:
    x, axis = LAYOUTS[name]
    definition, before = Definition((axis - x.dim() if axis > 0 else axis,), 1e-5), x.clone()
    q, scales = gpu_quantized.quantized(x, None, None, definition, "int8", None)
    assert torch.equal(x, before)
    assert q.is_contiguous()
    (y, *_) = gpu_quantized.forward(x, None, None, definition)
    largest = y.abs().amax(axis, keepdim=True)
    assert torch.equal(scales, largest / 127)
    assert torch.equal(q, (y / scales).round().to(torch.int8))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_no_elements(shape) -> None:
    run, x = gpu.OPERATORS["quantized_layer_norm"], a_tensor(*shape)
    q, scales = run(x, None, None, None, [-1], 1e-5, False, 0)
    assert (q.shape, scales.shape) == (shape, (shape[0], 1))
    assert (scales == torch.finfo(torch.float32).tiny).all()
    q, scales = run(x, None, None, torch.ones((), device=DEVICE), [-1], 1e-5, False, 1)
    assert (q.shape, scales.shape) == (shape, (0,))


def test_a_scale_of_another_shape_type_or_device_is_an_error() -> None:
    x, run = a_tensor(2, 3), gpu.OPERATORS["quantized_rms_norm"]
    one = torch.ones((), device=DEVICE)
    for scale, words in (
        (one.expand(2, 1), r"scale has shape \[2, 1\].*expected one element"),
        (one.double(), r"type torch.float64, expected .*pass one number, scale\.to\(torch.float32"),
        (one.to("meta"), "scale is on meta .*one device"),
    ):
        with pytest.raises(RuntimeError, match=words):
            run(x, None, scale, [-1], 1e-5, False, 0)


@each_kind
@pytest.mark.parametrize("scale", [None, 0.02])
def test_the_front_end_reaches_the_kernels(kind, scale, in_place_of_the_cpu, monkeypatch) -> None:
    seen = []
    launch = gpu_quantized.quantized

    def watched(*arguments):
        seen.append(arguments[4])
        return launch(*arguments)

    monkeypatch.setattr(gpu_quantized, "quantized", watched)
    x, *parameters = a_tensor(2, 16, 5), a_tensor(16, seed=5), a_tensor(16, seed=6)
    parameters = parameters[: 2 if kind == "layer_norm" else 1]
    options = {"axis": 1, "eps": 1e-5, "zero_centered_weight": True}
    given = options | {"dtype": "float8_e4m3fn", "scale": scale}
    result = getattr(ours, f"quantized_{kind}")(x, (16,), *parameters, **given)
    assert seen == ["float8_e4m3fn"]
    arrays = [each.cpu().numpy() for each in (x, *parameters)]
    expected = getattr(kernels, f"quantized_{kind}")(*arrays, **given)
    q, *scales = [result] if scale is not None else result
    right, *right_scales = [expected] if scale is not None else expected
    assert q.dtype == torch.float8_e4m3fn
    got = q.view(torch.int8).cpu().numpy().view(ml_dtypes.float8_e4m3fn)
    assert_same_bits(got, right, "q")
    for each, other in zip(scales, right_scales, strict=True):
        assert_same_bits(each.cpu().numpy(), other, "the scales")
