"""Weight and bias that vary along kept axes: each member has the bits of a call with its rows."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from as_numpy_triton import DEVICE, Kernels  # noqa: E402
from calls import assert_same_bits  # noqa: E402
from cases import KINDS  # noqa: E402
from layouts import axes_of, from_rows, transposed  # noqa: E402
from triton_interpreter import INTERPRETED, every  # noqa: E402
from values import LIMITS, TYPES, VALUES, dtype_of, parameter_types  # noqa: E402

from layernorm import accuracy, spec  # noqa: E402
from layernorm.torch.arguments import Definition  # noqa: E402
from layernorm.torch.gpu import backward as gpu_backward  # noqa: E402
from layernorm.torch.gpu import forward as gpu_forward  # noqa: E402

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU here", allow_module_level=True)  # once, not for each of 1,000 cases

ours = Kernels()


@dataclass(frozen=True)
class Members:
    shape: tuple[int, ...]
    axis: int | tuple[int, ...]
    parameter_shape: tuple[int, ...]
    in_memory: tuple[int, ...] | None = None  # the order of x's axes, if another

    @property
    def axes(self) -> tuple[int, ...]:
        return axes_of(self.axis, len(self.shape))

    @property
    def varying(self) -> tuple[int, ...]:
        return spec.varying_axes(self.parameter_shape, self.shape, self.axes)

    @property
    def spread_shape(self) -> tuple[int, ...]:
        """The parameters' shape with all axes of x."""
        return spec.parameter_shape(self.shape, self.axes, self.varying)

    def some(self) -> list[tuple[slice, ...]]:
        """Return the indices of a few members in x, and in a parameter with all axes of x."""
        sizes = [range(self.shape[axis]) for axis in self.varying]
        places = list(itertools.product(*sizes))
        return [self._index(places[at]) for at in {0, 1, len(places) // 2, len(places) - 1}]

    def _index(self, place: tuple[int, ...]) -> tuple[slice, ...]:
        index = [slice(None)] * len(self.shape)
        for axis, at in zip(self.varying, place, strict=True):
            index[axis] = slice(at, at + 1)
        return tuple(index)


PROBLEMS = {
    # several tiles to a member, the last one ragged, and sums of several programs
    "adaln": Members((3, 37, 40), -1, (3, 1, 40)),
    "adaln_13": Members((2, 150, 13), -1, (2, 1, 13)),
    "per_head": Members((5, 60, 3, 16), -1, (3, 16)),
    "per_head_before_positions": Members((3, 4, 70, 16), -1, (4, 1, 16)),
    "per_head_transposed": Members((2, 4, 70, 16), -1, (4, 1, 16), in_memory=(0, 2, 1, 3)),
    "channels_first": Members((3, 20, 7, 5), 1, (3, 20, 1, 1)),
    "channels_last_in_memory": Members((3, 20, 7, 5), 1, (3, 20, 1, 1), in_memory=(0, 2, 3, 1)),
    "channels_first_between": Members((3, 2, 4, 8, 35), 3, (2, 1, 8, 1)),
    # one program to a member
    "one_row": Members((5, 23), -1, (5, 23)),
    "per_token": Members((2, 5, 24), -1, (2, 5, 24)),
    "grouped": Members((7, 3, 4, 5), (-2, -1), (3, 4, 5)),
    "channels_first_grouped": Members((5, 3, 8, 37), 2, (3, 8, 1)),
    # copied, with the members first
    "apart": Members((2, 5, 3, 16), -1, (2, 1, 3, 16)),
    "behind_channels": Members((2, 20, 3, 35), 1, (20, 3, 1)),
    "all_behind_channels": Members((19, 8, 3, 5), 1, (8, 3, 5)),
    "between_normalized": Members((2, 4, 3, 5), (1, 3), (4, 3, 5)),
    "between_normalized_channels": Members((2, 4, 3, 5, 7), (1, 3), (4, 3, 5, 1)),
}
# In small tiles. 100: the sums of dweight and dbias do not fit beside dx. Others: long rows.
IN_SMALL_TILES = {
    "adaln_100": Members((2, 70, 100), -1, (2, 1, 100)),
    "adaln_300": Members((2, 3, 300), -1, (2, 1, 300)),
    "per_head_257": Members((3, 2, 257), -1, (2, 257)),
    "per_token_100": Members((2, 3, 100), -1, (2, 3, 100)),
    "channels_first_40": Members((2, 40, 23), 1, (2, 40, 1)),
    "channels_first_between_40": Members((2, 2, 2, 40, 5), 3, (2, 1, 40, 1)),
    "behind_channels_40": Members((2, 40, 2, 5), 1, (40, 2, 1)),
}
EVERY = PROBLEMS | IN_SMALL_TILES
PARAMETERS = ("weight bias", "weight", "bias", "weight bias zero_centered")
VARIANTS = [
    (kind, dtype, of_parameters, parameters)
    for kind in KINDS
    for dtype in TYPES
    for of_parameters in parameter_types(dtype)
    for parameters in PARAMETERS
    if kind == "layer_norm" or parameters != "bias"
]


def variants_of(problem: str, step: int) -> list[Any]:
    """Take a few variants, others for each problem, so that all together are all of them."""
    start = list(EVERY).index(problem)
    return [(problem, *each) for each in every(step, VARIANTS[start:] + VARIANTS[:start])]


def arrays_of(problem, kind, dtype, of_parameters, parameters, values="mixed"):
    """Make x, dy, weight and bias, the last two None if not among the parameters."""
    rng = np.random.default_rng(7)
    cols = np.prod([problem.shape[axis] for axis in problem.axes], dtype=int)
    rows = np.prod(problem.shape, dtype=int) // cols
    largest = LIMITS[dtype].largest

    def rows_of_values(name):
        made = VALUES[name](rng, rows, cols, LIMITS[dtype]).clip(-largest, largest)
        laid = from_rows(made.astype(dtype_of(dtype)), problem.shape, problem.axis)
        return transposed(*problem.in_memory)(laid) if problem.in_memory else laid

    names = parameters.split()
    weight = rng.standard_normal(problem.parameter_shape)
    weight = 0.1 * weight if "zero_centered" in names else 1 + 0.5 * weight
    bias = rng.standard_normal(problem.parameter_shape)
    x, dy = rows_of_values(values), rows_of_values("off_zero")
    return (
        *(x, dy),
        weight.astype(dtype_of(of_parameters)) if "weight" in names else None,
        bias.astype(dtype_of(of_parameters)) if "bias" in names and kind == "layer_norm" else None,
    )


def run(kind, x, dy, weight, bias, axis, *, zero_centered) -> dict[str, np.ndarray]:
    options = {"axis": axis, "zero_centered_weight": zero_centered}
    if kind == "layer_norm":
        y, stats = ours.layer_norm_forward(x, weight, bias, **options)
        gradients = ours.layer_norm_backward(dy, x, stats, weight)
    else:
        y, stats = ours.rms_norm_forward(x, weight, **options)
        gradients = (*ours.rms_norm_backward(dy, x, stats, weight), None)
    names = ("y", "mean", "rstd", "residual", "dx", "dweight", "dbias")
    found = (y, stats.mean, stats.rstd, stats.residual, *gradients)
    return {name: each for name, each in zip(names, found, strict=True) if each is not None}


@pytest.mark.parametrize(
    ("name", "kind", "dtype", "of_parameters", "parameters"),
    [each for name in EVERY for each in variants_of(name, 17)],
)
def test_members_are_within_the_bounds_and_have_the_bits_of_calls_of_their_own(
    name, kind, dtype, of_parameters, parameters, request
) -> None:
    if name in IN_SMALL_TILES:
        request.getfixturevalue("small_tiles")
    problem, zero_centered = EVERY[name], "zero_centered" in parameters
    given = arrays_of(problem, kind, dtype, of_parameters, parameters)
    got = run(kind, *given, problem.axis, zero_centered=zero_centered)
    judge(problem, kind, dtype, given, got, zero_centered=zero_centered)
    x, dy, *own = given
    spread = [None if each is None else each.reshape(problem.spread_shape) for each in own]
    normal = [problem.shape[axis] for axis in problem.axes]
    for index in problem.some():
        parts = (each if each is None else each[_of_parameter(problem, index)] for each in spread)
        parts = (each if each is None else each.reshape(normal) for each in parts)
        alone = run(kind, x[index], dy[index], *parts, problem.axis, zero_centered=zero_centered)
        assert alone.keys() == got.keys()
        for result, expected in alone.items():
            if result in ("dweight", "dbias"):
                found = got[result].reshape(problem.spread_shape)
                found = found[_of_parameter(problem, index)].reshape(normal)
            else:
                found = got[result][index]
            assert_same_bits(found, expected, f"{result} of member {index}")


def _of_parameter(problem: Members, index: tuple[slice, ...]) -> tuple[slice, ...]:
    cuts = enumerate(index)
    return tuple(cut if axis in problem.varying else slice(None) for axis, cut in cuts)


def judge(problem, kind, dtype, given, got, *, zero_centered) -> None:
    x, dy, weight, bias = given
    bounds, about = accuracy.BOUNDS[dtype], {"axis": problem.axis, "kind": kind, "eps": 1e-5}
    scaled = about | {"zero_centered_weight": zero_centered}
    errors = {
        "y": (accuracy.y_error(got["y"], x, weight, bias, **scaled), bounds.y),
        "dx": (accuracy.dx_error(got["dx"], dy, x, weight, **scaled), bounds.dx),
        "dweight": (accuracy.dweight_error(got["dweight"], dy, x, **about), bounds.parameter),
    }
    if kind == "layer_norm":
        error = accuracy.dbias_error(got["dbias"], dy, axis=problem.axis)
        errors["dbias"] = (error, bounds.parameter)
    for name, (error, bound) in errors.items():
        assert error <= bound, f"{name} is {error:.3g} ulp off, allowed {bound}"
    has_parameter = weight is not None or bias is not None
    for name in {"dweight", "dbias"} & got.keys():
        assert not has_parameter or got[name].shape == problem.parameter_shape


# In tiles of their real size: sums in a kernel of their own, long rows.
@pytest.mark.parametrize(
    ("shape", "axis", "parameter_shape", "dtype"),
    [
        ((2, 2, 5000), -1, (2, 1, 5000), "float32"),
        ((2, 1, 20000), -1, (2, 1, 20000), "bfloat16"),
        ((2, 3000, 5), 1, (2, 3000, 1), "float32"),
    ],
)
def test_members_in_large_tiles_are_within_the_bounds(shape, axis, parameter_shape, dtype) -> None:
    problem = Members(shape, axis, parameter_shape)
    given = arrays_of(problem, "layer_norm", dtype, dtype, "weight bias", values="mean_1e2")
    got = run("layer_norm", *given, axis, zero_centered=False)
    judge(problem, "layer_norm", dtype, given, got, zero_centered=False)


@pytest.mark.parametrize(
    ("shape", "axis", "parameter_shape"),
    [
        ((0, 7, 8), -1, (0, 1, 8)),
        ((3, 0, 8), -1, (3, 1, 8)),
        ((2, 8, 0), 1, (2, 8, 1)),
        ((2, 3, 0), -1, (2, 1, 0)),
    ],
)
def test_no_elements_give_zero_gradients_of_the_parameters_shape(
    shape, axis, parameter_shape
) -> None:
    x, parameter = np.empty(shape, np.float32), np.ones(parameter_shape, np.float32)
    got = run("layer_norm", x, x, parameter, parameter, axis, zero_centered=False)
    assert got["y"].shape == got["dx"].shape == shape
    for name in ("dweight", "dbias"):
        assert_same_bits(got[name], np.zeros(parameter_shape, np.float32), name)


def tensors(dtype, *shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(each, generator=generator).to(DEVICE, dtype) for each in shapes]


def a_call(x, dy, weight, bias):
    definition = Definition((-1,), 1e-5)
    y, *statistics = gpu_forward.forward(x, weight, bias, definition)
    given = (dy, x, weight, weight.dtype, definition, [True] * 3, statistics)
    return y, *gpu_backward.Backward(*given).run()


# 16: rows are read 16 bytes at a time. 13: element by element.
@pytest.mark.parametrize("cols", [16, 13])
@pytest.mark.parametrize("heads", [1, 3], ids=["one weight", "a weight for each head"])
def test_heads_in_a_projection_have_the_bits_of_a_copy(heads, cols) -> None:
    projected, dy, weight, bias = tensors(
        torch.float32, (2, 21, 2, 3, cols), (2, 21, 3, cols), (heads, cols), (heads, cols)
    )
    if heads == 1:
        weight, bias = weight[0], bias[0]
    else:
        weight, bias = (each.reshape(1, 1, heads, cols) for each in (weight, bias))
    x = projected[:, :, 1]
    for got, expected in zip(
        a_call(x, dy, weight, bias), a_call(x.contiguous(), dy, weight, bias), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", ["sliced", "expanded"])
def test_parameters_of_any_strides_have_the_bits_of_a_copy(layout) -> None:
    x, dy, modulation = tensors(torch.bfloat16, (3, 5, 16), (3, 5, 16), (3, 96))
    if layout == "sliced":
        weight, bias = (each[:, None] for each in modulation.chunk(6, dim=1)[1:3])
    else:
        weight, bias = modulation[:1, None, :16].expand(3, 1, 16), modulation[:, None, 16:32]
    copies = [each.contiguous() for each in (weight, bias)]
    for got, expected in zip(a_call(x, dy, weight, bias), a_call(x, dy, *copies), strict=True):
        assert torch.equal(got, expected)
