"""The fast path past the dispatcher: which calls take it, and which the general path."""

from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import layernorm  # noqa: E402
import layernorm.torch as ours  # noqa: E402
from layernorm import _native  # noqa: E402
from layernorm.torch import autograd, functional, gate, over_axes  # noqa: E402

SHAPE = (5,)


def takes_fast_path(x, weight=None, bias=None, shape=SHAPE, eps=1e-5) -> bool:
    return _native.torch_try_forward(x, weight, bias, shape, eps, True, False) is not None


def test_contiguous_tensors_take_the_fast_path() -> None:
    x, weight = torch.randn(3, 5), torch.nn.Parameter(torch.randn(5))
    assert takes_fast_path(x, weight, weight)
    assert takes_fast_path(x, shape=[5])
    assert takes_fast_path(x, shape=5)
    assert takes_fast_path(x, shape=x.shape)
    assert takes_fast_path(x.bfloat16(), weight.float(), None)
    assert takes_fast_path(x[1:])
    y, rest = _native.torch_try_forward(x, weight, None, SHAPE, 1e-5, True, False)
    with torch.no_grad():
        dx, dweight, *others = _native.torch_try_backward(
            x, weight, rest, y, (True, True, False, False)
        )
    assert dx.shape == x.shape
    assert dweight.shape == weight.shape
    assert others == [None, None]


# Of sizes (4, 6, 5), each row contiguous.
ROWS_APART = {
    "gaps": lambda: torch.randn(4, 6, 8)[..., 2:7],
    "a third of a projection": lambda: torch.randn(4, 90)[:, 30:60].unflatten(-1, (6, 5)),
    "heads first": lambda: torch.randn(6, 4, 5).transpose(0, 1),
    "every second": lambda: torch.randn(8, 6, 5)[::2],
    "rows in common": lambda: torch.randn(50).as_strided((4, 6, 5), (5, 5, 1)),
}


@pytest.mark.parametrize("rows", ROWS_APART)
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("beside", [None, "residual", "gate"])
def test_contiguous_rows_take_the_fast_path_wherever_they_are(
    rows, centered, beside, monkeypatch
) -> None:
    function = ours.layer_norm if centered else ours.rms_norm
    x, other, weight = ROWS_APART[rows](), ROWS_APART["gaps"](), torch.randn(5)
    dy = ROWS_APART["heads first"]()

    def results(x, other, dy):
        given = [each.detach().requires_grad_() for each in (x, other, weight)]
        keyword = {} if beside is None else {beside: given[1]}
        y = function(given[0], SHAPE, given[2], eps=1e-5, **keyword)
        y, *total = y if beside == "residual" else (y,)
        assert y.is_contiguous()
        gradients = torch.autograd.grad(
            (y, *total), given, [dy] * (1 + len(total)), allow_unused=True
        )
        return [each.detach() for each in (y, *total, *gradients) if each is not None]

    with monkeypatch.context() as without_general_path:
        without_general_path.delattr(functional, "_run")
        without_general_path.delattr(autograd, "_general_backward")
        without_general_path.delattr(gate, "_gradients_of")
        fast = results(x, other, dy)
    contiguous = results(*(each.contiguous() for each in (x, other, dy)))
    monkeypatch.setattr(functional, "torch_try_forward", lambda *_: None)
    general = results(x, other, dy)
    assert len(fast) == len(general) == len(contiguous)
    assert all(map(torch.equal, fast, contiguous))
    assert all(map(torch.equal, fast, general))


def test_over_axes_y_keeps_the_strides_of_a_dense_x() -> None:
    call = (None, None, -1, 1e-5, True, False)
    assert _native.torch_try_forward_over_axes(ROWS_APART["gaps"](), *call).is_contiguous()
    x = ROWS_APART["heads first"]()
    assert _native.torch_try_forward_over_axes(x, *call) is None
    assert layernorm.layer_norm(x).stride() == x.stride()
    weight = torch.randn(10)[::2]
    assert not takes_fast_path(torch.randn(3, 5), weight)
    assert not takes_fast_path(torch.randn(3, 5), None, weight)


@pytest.mark.parametrize("axis", [-1, 2, (-1,), [1, 2], (0, -2, -1)], ids=repr)
@pytest.mark.parametrize("eps", [1e-5, 1])
def test_the_last_axes_take_the_fast_path(axis, eps) -> None:
    axes = (axis,) if isinstance(axis, int) else axis
    sizes = (2, 3, 5)[-len(axes) :]
    x, weight, dy = torch.randn(2, 3, 5), torch.randn(sizes), torch.randn(2, 3, 5)
    call = (eps, True, False)
    expected = _native.torch_try_forward(x, weight, None, sizes, float(eps), True, False)
    assert torch.equal(_native.torch_try_forward_over_axes(x, weight, None, axis, *call), expected)
    x.requires_grad_()
    results = (
        _native.torch_try_forward(x, weight, None, sizes, float(eps), True, False),
        _native.torch_try_forward_over_axes(x, weight, None, axis, *call),
    )
    with torch.no_grad():
        need = (True, True, False, False)
        right, got = (
            _native.torch_try_backward(x, weight, rest, dy, need)[:2] for _, rest in results
        )
    assert torch.equal(results[1][0], expected)
    assert all(map(torch.equal, got, right))


@pytest.mark.parametrize(
    ("axis", "eps"),
    [(0, 1e-5), (3, 1e-5), ((0, 2), 1e-5), ((2, -1), 1e-5), ((), 1e-5), (-1, None), (-1, -1.0)],
    ids=repr,
)
def test_other_axes_and_eps_take_the_general_path(axis, eps) -> None:
    x = torch.randn(2, 3, 5)
    for centered in (True, False):
        call = (x, None, None, axis, eps, centered, False)
        assert _native.torch_try_forward_over_axes(*call) is None


@pytest.mark.parametrize(
    "dy", ["a subclass", "transposed", "integers", "negated", "too short", "another type"]
)
def test_a_backward_of_another_dy_takes_the_general_path(dy) -> None:
    x = torch.randn(3, 5, requires_grad=True)
    _, rest = _native.torch_try_forward(x, None, None, SHAPE, 1e-5, True, False)
    with torch.no_grad():
        assert _native.torch_try_backward(x, None, rest, x.detach(), (True,) * 4) is not None
        other = {**OTHER_TENSORS, "another type": torch.Tensor.double}[dy](torch.randn(3, 5))
        assert _native.torch_try_backward(x, None, rest, other, (True,) * 4) is None


def test_a_backward_without_the_rest_of_its_call_is_an_error() -> None:
    x = torch.randn(3, 5)
    for rest, need in (((), (True,) * 3), (None, (True,) * 3), ((None,) * 6, ()), ((None,) * 6, 1)):
        with pytest.raises(TypeError, match="what torch_try_forward returned"):
            _native.torch_try_backward(x, None, rest, x, need)
    # Statistics of other rows are refused before they are read.
    _, rest = _native.torch_try_forward(x.requires_grad_(), None, None, SHAPE, 1e-5, True, False)
    for statistics in (rest[-1][:-4], b"", None):
        with torch.no_grad():
            changed = (*rest[:-1], statistics)
            assert _native.torch_try_backward(x, None, changed, x.detach(), (True,) * 3) is None


class Other(torch.Tensor):
    pass


OTHER_TENSORS = {
    "a subclass": lambda x: x.as_subclass(Other),
    "transposed": lambda x: torch.randn(5, 3).t(),
    "every second column": lambda x: torch.randn(3, 10)[:, ::2],
    "broadcast": lambda x: torch.randn(5).expand(3, 5),
    "integers": lambda x: torch.ones(3, 5, dtype=torch.int32),
    "complex": lambda x: x.to(torch.complex64),
    "8 bits": lambda x: x.to(torch.float8_e4m3fn),
    "negated": torch._neg_view,
    "no rows": lambda x: x[:0],
    "without data": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "zeros without memory": lambda x: torch._efficientzerotensor((3, 5)),
    "a list": lambda x: x.tolist(),
    "None": lambda x: None,
    "too short": lambda x: x[:, :4].contiguous(),
    "a number": lambda x: torch.tensor(1.0),
}


@pytest.mark.parametrize("kind", OTHER_TENSORS)
def test_other_tensors_take_the_general_path(kind) -> None:
    assert not takes_fast_path(OTHER_TENSORS[kind](torch.randn(3, 5)))


@pytest.mark.parametrize("kind", ["negated", "a subclass", "broadcast", "zeros without memory"])
def test_other_tensors_have_the_right_result(kind) -> None:
    x = OTHER_TENSORS[kind](torch.randn(3, 5))
    got = ours.layer_norm(x, SHAPE)
    assert type(got) is type(x)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), F.layer_norm(x.clone(), SHAPE))


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_dispatch_mode_around_the_backward_alone_sees_it() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    y = ours.layer_norm(x, SHAPE)
    with Recorder() as recorder:
        y.backward(torch.randn(3, 5))  # the mode alone rules out the fast path
    assert "layernorm.layer_norm_backward.default" in recorder.names


@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # before 2.12
def test_the_profiler_sees_our_operators() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    with torch.profiler.profile() as profile:
        ours.layer_norm(x, SHAPE).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"layernorm::layer_norm", "layernorm::layer_norm_backward"} <= names


def test_a_level_of_forward_mode_rules_out_the_fast_path() -> None:
    with forward_ad.dual_level():
        assert not takes_fast_path(torch.randn(3, 5))
    assert takes_fast_path(torch.randn(3, 5))


def test_a_transform_rules_out_the_fast_path() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(takes_fast_path(x)) or x)(torch.randn(2, 3, 5))
    assert seen == [False]


@pytest.mark.parametrize("arguments", [(), (1,), tuple(range(20))], ids=len)
def test_a_wrong_number_of_arguments_is_an_error(arguments) -> None:
    for name in ("torch_try_forward", "torch_try_forward_into", "torch_try_backward"):
        with pytest.raises(TypeError, match="arguments"):
            getattr(_native, name)(*arguments)


CALLS = {
    "layer_norm": lambda x, w, b: ours.layer_norm(x, SHAPE, w, b),
    "rms_norm": lambda x, w, b: ours.rms_norm(x, SHAPE, w, 1e-5),
    "top layer_norm": layernorm.layer_norm,
    "top rms_norm": lambda x, w, b: layernorm.rms_norm(x, w, axis=(1,), eps=1),
    "top layer_norm, out": lambda x, w, b: layernorm.layer_norm(x, w, b, out=torch.empty(3, 5)),
}


@pytest.mark.parametrize(
    ("name", "with_gradient"),
    [(name, False) for name in CALLS] + [(name, True) for name in CALLS if "out" not in name],
)
def test_the_functions_take_the_fast_path_to_the_bits_of_the_general_one(
    name, with_gradient, monkeypatch
) -> None:
    every = [torch.randn(size, requires_grad=with_gradient) for size in ((3, 5), (5,), (5,))]
    dy = torch.randn(3, 5)

    def results():
        y = CALLS[name](*every)
        gradients = torch.autograd.grad(y, every, dy, allow_unused=True) if with_gradient else ()
        return [each.detach() for each in (y, *gradients) if each is not None]

    with monkeypatch.context() as without_general_path:
        without_general_path.delattr(functional, "norm")
        fast = results()
    monkeypatch.setattr(functional, "torch_try_forward", lambda *_: None)
    monkeypatch.setattr(over_axes, "torch_try_forward_over_axes", lambda *_: None)
    monkeypatch.setattr(over_axes, "torch_try_forward_into", lambda *_: False)
    general = results()
    assert len(fast) == len(general)
    assert all(map(torch.equal, fast, general))


def test_several_threads_may_call_at_once() -> None:
    x, weight = torch.randn(700, 768), torch.randn(768, requires_grad=True)
    dy = torch.randn(700, 768)

    def call(_: int):
        y = ours.layer_norm(x, (768,), weight)
        return y.detach(), *torch.autograd.grad(y, weight, dy)

    expected = call(0)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(call, range(40)):
            assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("axis", [None, -1], ids=["fast", "general"])
def test_subnormal_numbers_are_kept_where_pytorch_flushes_them(axis) -> None:
    weight = torch.full((5,), 1e-41)

    def call():
        x = torch.arange(15.0).reshape(3, 5).requires_grad_()
        y = ours.layer_norm(x, SHAPE, weight, axis=axis)
        return y.detach(), *torch.autograd.grad(y, x, torch.arange(15.0).reshape(3, 5) ** 2)

    expected = call()
    assert all(0 < each.abs().max() < torch.finfo(torch.float32).tiny for each in expected)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        flushed = call()
    finally:
        torch.set_flush_denormal(False)
    assert [each.numpy().tobytes() for each in flushed] == [
        each.numpy().tobytes() for each in expected
    ]


# `out`, of the top level's functions


def into(x, out, **options):
    return layernorm.layer_norm(x, torch.arange(5.0).to(x.dtype), out=out, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_y_is_written_straight_into_out(dtype) -> None:
    x = torch.randn(3, 5, dtype=dtype)
    expected = into(x, None)
    out = torch.full((3, 5), torch.nan, dtype=dtype)
    version = out._version
    assert into(x, out) is out
    assert torch.equal(out, expected)
    assert out._version == version + 1
    assert into(x, x) is x  # in place
    assert torch.equal(x, expected)


def test_the_fast_path_writes_into_contiguous_tensors_alone() -> None:
    x, out = torch.randn(3, 5), torch.empty(3, 5)
    arguments = (x, None, None, -1, 1e-5, True, False)
    assert _native.torch_try_forward_into(*arguments, out)
    assert not _native.torch_try_forward_into(torch.randn(3, 8)[:, :5], *arguments[1:], out)
    refused = {
        "another type": out.double(),
        "another shape": out[:2],
        "strided": torch.empty(5, 3).t(),
        "rows apart": torch.empty(3, 8)[:, :5],
        "negated": torch._neg_view(torch.empty(3, 5)),
        "a gradient": out.clone().requires_grad_(),
        "no tensor": None,
    }
    for name, each in refused.items():
        assert not _native.torch_try_forward_into(*arguments, each), name


@pytest.mark.parametrize("start", [0, 3, 5])
def test_an_out_that_overlaps_x_has_the_right_y(start) -> None:
    memory = torch.randn(40)
    x, out = memory[:15].view(3, 5), memory[start : start + 15].view(3, 5)
    expected = into(x, None)
    into(x, out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_an_out_that_overlaps_a_parameter_has_the_right_y(name) -> None:
    x, memory = torch.randn(3, 5), torch.randn(15)
    parameters = {"weight": torch.randn(5)} | {name: memory[:5]}  # read again for the last row
    expected = layernorm.layer_norm(x, **parameters)
    out = memory.view(3, 5)
    layernorm.layer_norm(x, **parameters, out=out)
    assert torch.equal(out, expected)


def test_out_and_a_gradient_exclude_each_other() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="does not go through out"):
        into(x, torch.empty(3, 5))
    with torch.no_grad():
        assert torch.equal(into(x, torch.empty(3, 5)), into(x, None))


def test_a_backward_sees_that_out_has_overwritten_what_it_needs() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    y = x.exp()  # whose backward needs y
    with torch.no_grad():
        into(torch.randn(3, 5), y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_out_in_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.randn(3, 5)
        assert torch.equal(into(x, torch.empty(3, 5)), into(x, None))
