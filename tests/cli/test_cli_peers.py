"""The peers: they get the same arguments as ours; a missing one is a line, or an error."""

import sys

import pytest
from provider_results import assert_results_are_numpys

pytest.importorskip("rich")

from layernorm.cli import main
from layernorm.cli.machine import usable_processors
from layernorm.cli.providers import FRONT_ENDS, PEERS, find_providers, ours


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "layernorm.cli.providers.pytorch", raising=False)
    monkeypatch.delenv("LAYERNORM_REQUIRE_PEERS", raising=False)


def test_a_missing_peer_is_a_line(tiny_check, without_torch, capsys):
    assert main(["check", "--quick", "--peers", "torch,numpy"]) == 0
    assert "missing peer: torch: not installed" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "bench"])
def test_a_missing_peer_is_an_error_if_peers_are_required(
    command, tiny_check, tiny_bench, without_torch, monkeypatch, capsys
):
    monkeypatch.setenv("LAYERNORM_REQUIRE_PEERS", "1")
    assert main([command, "--quick", "--peers", "torch,numpy"]) == 2
    assert "LAYERNORM_REQUIRE_PEERS=1, but torch: not installed" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "bench"])
def test_an_unknown_peer_is_a_usage_error(command, capsys):
    assert main([command, "--quick", "--peers", "numpie"]) == 2
    assert "unknown peer numpie" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", [*(name for name in PEERS if name != "torch.compile"), "flax.linen"]
)
@pytest.mark.filterwarnings("ignore")
def test_each_peer_is_asked_for_the_same_as_we(name):
    """With wrong arguments, a peer would be reported as wrong, or compared unfairly."""
    found = find_providers(threads=usable_processors(), names=[name])
    if name in found.missing:
        pytest.skip(f"{name}: {found.missing[name]}")
    (peer,) = found.peers
    assert_results_are_numpys(peer)


# TensorFlow takes its number of threads once in a process: tests/keras/inside_backend.py.
@pytest.mark.parametrize(
    "name", [name for name in FRONT_ENDS if name not in ("numpy", "tensorflow")]
)
@pytest.mark.filterwarnings("ignore")
def test_each_front_end_is_asked_for_the_same(name):
    pytest.importorskip(name.partition(".")[0])
    found = find_providers(threads=usable_processors(), names=[], front_end=name)
    assert type(found.ours) is not ours.Ours
    assert_results_are_numpys(found.ours)
