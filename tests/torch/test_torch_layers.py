"""Modules, their states, and convert()."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402

PAIRS = [(ours.LayerNorm, nn.LayerNorm), (ours.RMSNorm, nn.RMSNorm)]

each_pair = pytest.mark.parametrize(("mine", "theirs"), PAIRS)


@each_pair
def test_states_load_both_ways(mine, theirs) -> None:
    x = torch.randn(3, 4, 5)
    for source, target in ((mine, theirs), (theirs, mine)):
        old, new = source((4, 5)), target((4, 5))
        with torch.no_grad():
            for each in old.parameters():
                each.copy_(torch.randn_like(each))
        saved = io.BytesIO()
        torch.save(old.state_dict(), saved)
        saved.seek(0)
        new.load_state_dict(torch.load(saved))
        torch.testing.assert_close(new(x), old(x))


@each_pair
def test_first_values_and_representations_are_pytorchs(mine, theirs) -> None:
    new, old = mine(7), theirs(7)
    assert isinstance(new, theirs)
    assert repr(new) == repr(old)
    for got, expected in zip(new.parameters(), old.parameters(), strict=True):
        assert torch.equal(got, expected)
    assert repr(mine(7, axis=1)).endswith("axis=1)")


@each_pair
def test_modules_are_copied_and_pickled_whole(mine, theirs) -> None:
    layer = mine(6, axis=1)
    x = torch.randn(2, 6, 3)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_a_zero_centered_weight_starts_as_zeros_and_is_one_less_than_another() -> None:
    x = torch.randn(3, 5)
    for cls in (ours.LayerNorm, ours.RMSNorm):
        layer, usual = cls(5, eps=1e-6, zero_centered_weight=True), cls(5, eps=1e-6)
        assert not layer.weight.any()
        assert torch.equal(layer(x), usual(x))
        assert repr(layer).endswith("zero_centered_weight=True)")
        with torch.no_grad():
            layer.weight.fill_(0.5)
            usual.weight.fill_(1.5)
        assert torch.equal(layer(x), usual(x))


def test_autocast_leaves_the_type_of_x() -> None:
    layer = ours.LayerNorm(5)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(3, 5).to(dtype)
            assert layer(x).dtype == nn.LayerNorm(5)(x).dtype == dtype


class Llama(nn.Module):
    """The norm of transformers: float32 inside, rounded before the weight."""

    def __init__(self, cols, offset=0.0, eps_outside=False, round_first=True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cols))
        self.variance_epsilon = 1e-6
        self.offset, self.eps_outside, self.round_first = offset, eps_outside, round_first

    def forward(self, x):
        widened = x.float()
        variance = widened.pow(2).mean(-1, keepdim=True)
        if self.eps_outside:
            xhat = widened / (variance.sqrt() + self.variance_epsilon)
        else:
            xhat = widened * torch.rsqrt(variance + self.variance_epsilon)
        if self.round_first:
            return (self.offset + self.weight) * xhat.to(x.dtype)
        return ((self.offset + self.weight.float()) * xhat).to(x.dtype)


class LlamaNorm(Llama):
    pass


class ChannelsFirstNorm(nn.Module):
    def __init__(self, cols) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(cols)), nn.Parameter(torch.randn(cols))
        self.eps = 1e-6

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        xhat = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * xhat + self.bias[:, None, None]


def test_convert_swaps_what_behaves_the_same_and_leaves_the_rest() -> None:
    shared = LlamaNorm(8)
    hooked = LlamaNorm(8)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.ModuleDict(
        {
            "layer_norm": nn.LayerNorm(8),
            "rms_norm": nn.RMSNorm(8),
            "llama": shared,
            "again": shared,
            "gemma": LlamaNorm(8, offset=1.0, round_first=False),
            "channels_first": ChannelsFirstNorm(8),
            "eps_outside": LlamaNorm(8, eps_outside=True),
            "offset_of_half": LlamaNorm(8, offset=0.5),
            "hooked": hooked,
            "batch": nn.BatchNorm1d(8),
            "group": nn.GroupNorm(2, 8),
            "linear": nn.Linear(8, 8),
        }
    )
    parameters = {name: id(each) for name, each in model.named_parameters()}
    x = torch.randn(2, 8, 4, 8)
    swapped = ("layer_norm", "rms_norm", "llama", "gemma", "channels_first")
    expected = {name: model[name](x) for name in swapped}
    done = ours.convert(model)
    assert set(done.swapped) == set(swapped)
    assert set(done.left) == {"eps_outside", "offset_of_half", "hooked", "batch", "group"}
    assert {name: id(each) for name, each in model.named_parameters()} == parameters
    assert model["again"] is model["llama"]
    assert model["channels_first"].axis == 1
    assert model["gemma"].zero_centered_weight
    for name in swapped:
        assert type(model[name]) in (ours.LayerNorm, ours.RMSNorm)
        torch.testing.assert_close(model[name](x), expected[name])
    assert "swapped gemma" in str(done)
    assert not ours.convert(model).swapped


def test_convert_keeps_hooks_and_modes_of_pytorchs_modules() -> None:
    model = nn.Sequential(nn.LayerNorm(5)).eval()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    first = model[0]
    ours.convert(model)
    model(torch.randn(3, 5))
    assert (calls, model[0].training, model[0] is first) == ([1], False, True)


@pytest.mark.parametrize(
    "register",
    [
        lambda each: each.register_forward_hook(print),
        lambda each: each.register_forward_pre_hook(print),
        lambda each: each.register_full_backward_hook(print),
        lambda each: each.register_full_backward_pre_hook(print),
        lambda each: each.register_state_dict_pre_hook(print),
        lambda each: each.register_load_state_dict_pre_hook(print),
    ],
)
def test_convert_leaves_modules_of_other_classes_that_have_hooks(register) -> None:
    model = nn.Sequential(LlamaNorm(5))
    register(model[0])
    assert "hooks" in ours.convert(model).left["0"]


def test_convert_swaps_a_model_that_is_a_norm() -> None:
    model = nn.LayerNorm(5)
    ours.convert(model)
    assert type(model) is ours.LayerNorm
    with pytest.raises(ValueError, match="the model itself"):
        ours.convert(LlamaNorm(5))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        ours.convert([1])
