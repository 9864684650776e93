"""Memory formats, errors of our own arguments, and the top level's functions."""

import ml_dtypes  # noqa: F401
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from calls import assert_same_bits  # noqa: E402

import layernorm  # noqa: E402
import layernorm.torch as ours  # noqa: E402


def channels_first(x, weight, bias):
    moved = F.layer_norm(x.movedim(1, -1).double(), weight.shape, weight.double(), bias.double())
    return moved.movedim(-1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_channels_first_keeps_the_memory_format_and_is_right(memory_format, dtype) -> None:
    x = torch.randn(2, 6, 7, 5).to(dtype).contiguous(memory_format=memory_format)
    weight, bias = torch.randn(6).to(dtype), torch.randn(6).to(dtype)
    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    y = ours.layer_norm(x, 6, weight, bias, axis=1)
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, channels_first(x, weight, bias).to(dtype))
    dy = torch.randn(y.shape).to(dtype)
    got = torch.autograd.grad(y, inputs, dy)
    assert got[0].is_contiguous(memory_format=memory_format)
    expected = torch.autograd.grad(channels_first(x, weight, bias), inputs, dy.double())
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(
            mine, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
        )


def bytes_allocated(function) -> int:
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # PyTorch 2.10
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_channels_first_takes_no_copy(memory_format) -> None:
    x = torch.randn(4, 64, 16, 16).contiguous(memory_format=memory_format)
    y_and_statistics = x.nbytes + 3 * 4 * x.numel() // 64
    got = bytes_allocated(lambda: ours.layer_norm(x, 64, axis=1))
    assert y_and_statistics <= got <= 1.1 * y_and_statistics


@pytest.mark.parametrize("channels", [1, 67])
@pytest.mark.parametrize("order", ["channels first", "channels last"])
@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_sample_alone_gives_its_bits_in_a_batch(is_repeated, order, channels) -> None:
    """The kernels can read one sample, and not a batch that repeats it with a stride of zero."""
    samples = 1 if is_repeated else 4
    if order == "channels last":
        x = torch.randn(samples, 9, 70)[:, :7, :channels].transpose(1, 2)
    else:
        x = torch.randn(samples, 5, channels, 14)[:, :3]
    x = x.expand(4, *x.shape[1:])
    dy, weight = torch.randn(x.shape), -torch.rand(channels)  # of one channel, y is 0 or -0

    def results(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x[rows].requires_grad_()
        y = ours.layer_norm(leaf, channels, weight, axis=-2)
        return y.detach(), torch.autograd.grad(y, leaf, dy[rows])[0]

    whole = results(slice(None))
    for row in range(len(x)):
        for batch, alone in zip(whole, results(slice(row, row + 1)), strict=True):
            assert_same_bits(batch[row].numpy(), alone[0].numpy(), "a sample alone")


def test_layouts_that_take_a_copy_are_right() -> None:
    x = torch.randn(4, 6, 5, 7)
    for each in (x.permute(3, 1, 0, 2), x[:, :, ::2], x[:, ::2].transpose(0, 3), x.flip(1)):
        got = ours.layer_norm(each, each.shape[1], axis=1)
        expected = F.layer_norm(each.movedim(1, -1), each.shape[1:2]).movedim(-1, 1)
        torch.testing.assert_close(got, expected)
        assert ours.layer_norm(each, each.shape[-1:]).is_contiguous()


X = torch.randn(2, 3, 4)

WRONG = {
    "axis too large": (IndexError, "out of range", lambda: ours.layer_norm(X, 4, axis=3)),
    "axis twice": (RuntimeError, "twice", lambda: ours.layer_norm(X, (4, 4), axis=(2, -1))),
    "axis of no kind": (TypeError, "axis is 'a'", lambda: ours.layer_norm(X, 4, axis="a")),
    "sizes along axis": (
        RuntimeError,
        r"along axes \(-2,\)",
        lambda: ours.layer_norm(X, 4, axis=1),
    ),
    "weight": (RuntimeError, "pass a weight", lambda: ours.layer_norm(X, 4, torch.ones(3))),
    "bias": (RuntimeError, "pass a bias", lambda: ours.layer_norm(X, 4, None, torch.ones(4, 1))),
    "mixed types": (
        RuntimeError,
        r"mixed dtype.*pass weight\.to\(torch\.float32\)",
        lambda: ours.layer_norm(X, 4, torch.ones(4).half()),
    ),
    "two types": (
        RuntimeError,
        r"pass bias\.to\(weight\.dtype\)",
        lambda: ours.layer_norm(X.half(), 4, torch.ones(4), torch.ones(4).half()),
    ),
    "two devices": (
        RuntimeError,
        "meta is not on the expected device",
        lambda: ours.layer_norm(X, 4, torch.ones(4, device="meta")),
    ),
    "eps of no kind": (TypeError, "eps", lambda: ours.rms_norm(X, 4, eps="1e-5")),
    "no eps": (TypeError, "eps", lambda: ours.layer_norm(X, 4, eps=None)),
    "axes": (ValueError, "at least 4 dimensions", lambda: ours.rms_norm(X, (1, 2, 3, 4))),
    "integers": (NotImplementedError, "not implemented", lambda: ours.layer_norm(X.int(), 4)),
    "a list": (TypeError, "must be Tensor", lambda: ours.layer_norm([1.0], (1,))),
    "out with a gradient": (
        RuntimeError,
        "omit out",
        lambda: layernorm.layer_norm(X.clone().requires_grad_(), out=torch.empty_like(X)),
    ),
    "out of another shape": (
        RuntimeError,
        "pass an out",
        lambda: layernorm.layer_norm(X, out=torch.empty(3)),
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_errors_have_pytorchs_types_and_say_what_to_do(mistake) -> None:
    kind, words, call = WRONG[mistake]
    with pytest.raises(kind, match=words):
        call()


OPERATOR_MISTAKES = {
    "axis": lambda op: op(X, None, None, [3], 1e-5),
    "no axis": lambda op: op(X, None, None, [], 1e-5),
    "axis twice": lambda op: op(X, None, None, [1, -2], 1e-5),
    "too many axes": lambda op: op(X, None, None, [0, 1, 2, 0], 1e-5),
    "weight": lambda op: op(X, torch.ones(3), None, [-1], 1e-5),
    "weight's type": lambda op: op(X, torch.ones(4).half(), None, [-1], 1e-5),
    "integers": lambda op: op(X.int(), None, None, [-1], 1e-5),
    "two devices": lambda op: op(X, torch.ones(4, device="meta"), None, [-1], 1e-5),
    "no axes at all": lambda op: op(torch.tensor(1.0), None, None, [0], 1e-5),
}


@pytest.mark.parametrize("mistake", OPERATOR_MISTAKES)
def test_the_operators_check_for_themselves(mistake) -> None:
    with pytest.raises(RuntimeError, match=r"layernorm|Expected|mixed dtype"):
        OPERATOR_MISTAKES[mistake](torch.ops.layernorm.layer_norm)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_parameters_without_values_are_an_error(name) -> None:
    """As where one layer of a model was left on the device meta: y would be unset memory."""
    theirs, mine, first = (
        getattr(torch.nn, name)(4, device="meta"),
        getattr(ours, name)(4, device="meta"),
        getattr(ours, name)(3, axis=1, device="meta"),
    )
    ours.convert(theirs)
    for module in (theirs, mine, first, torch.vmap(mine), torch.compile(mine, backend="eager")):
        with pytest.raises(RuntimeError, match="device"):
            module(X)


@pytest.mark.parametrize("shape", [(8, 4, 4), (4,)])
def test_rms_norm_of_channels_last_memory_keeps_it_as_pytorchs_does(shape) -> None:
    images = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    every = [images, images[:, :, :2].repeat(1, 1, 2, 1), images[:, ::2].repeat(1, 2, 1, 1)]
    every += [images.transpose(2, 3), images.contiguous(), images.flatten(2).unflatten(2, (4, 4))]
    for x in every:
        expected = torch.nn.functional.rms_norm(x, shape)
        got = ours.rms_norm(x, shape)
        with ours.accelerate():
            accelerated = torch.nn.functional.rms_norm(x, shape)
        torch.testing.assert_close(got, expected)
        assert got.stride() == accelerated.stride() == expected.stride()


def test_more_axes_than_our_kernels_take() -> None:
    x = torch.randn(*(1,) * 70, 4).transpose(0, -2)[..., ::2]
    torch.testing.assert_close(ours.layer_norm(x, 2).flatten(), ours.layer_norm(x.flatten(), 2))


def test_the_backward_operator_checks_for_itself() -> None:
    backward = torch.ops.layernorm.layer_norm_backward
    rows = torch.zeros(2, 3, 1)
    options = ([-1], 1e-5, False, [True] * 3)
    for dy, statistics in (
        (X[:1], (rows, rows, rows)),
        (X.double(), (rows, rows, rows)),
        (X, (rows[:1], rows, rows)),
    ):
        with pytest.raises(RuntimeError, match="layernorm"):
            backward(dy, X, *statistics, None, None, *options)


@pytest.mark.parametrize("axis", [-1, 1, (0, 2)], ids=str)
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_the_top_level_takes_tensors(name, axis) -> None:
    shape = [X.shape[each] for each in np.atleast_1d(axis)]
    weight = torch.randn(shape)
    for zero_centered in (False, True):
        options = {"axis": axis, "eps": 0.1, "zero_centered_weight": zero_centered}
        function = getattr(layernorm, name)
        got = function(X, weight, **options)
        expected = function(X.numpy(), weight.numpy(), **options)
        np.testing.assert_array_equal(got.numpy(), expected)
        out = torch.empty_like(X)
        assert function(X, weight, **options, out=out) is out
        np.testing.assert_array_equal(out.numpy(), expected)
