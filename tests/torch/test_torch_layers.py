"""Modules and their states."""

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
