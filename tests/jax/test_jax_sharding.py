"""Arrays sharded over 8 devices of the host, in a process of its own."""

import functools
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from own_process import run_script

pytest.importorskip("jax")

import jax
from calls import assert_same_bits
from sharded_calls import (
    CALLS,
    GATED_CALLS,
    RESIDUAL_CALLS,
    arrays_for,
    with_gate,
    with_residual,
)

import layernorm.jax as ours
from layernorm import accuracy, reference

NONE: dict[str, int] = {}
# One all-gather for the moments, and two of means along rows; one all-reduce for dweight and dbias.
# The second programs compute both directions.
COLLECTIVES = {
    "rows": (NONE, {"all-reduce": 1}),
    "two kept axes": (NONE, {"all-reduce": 1}),
    "rows over both": (NONE, {"all-reduce": 1}),
    "normalized axis": ({"all-gather": 1}, {"all-gather": 3}),
    "rows and normalized axis": ({"all-gather": 1}, {"all-gather": 3, "all-reduce": 1}),
    "normalized axis over both": ({"all-gather": 1}, {"all-gather": 3}),
    # dweight and dbias are sums over the second axis alone.
    "adaptive, varying axis": (NONE, NONE),
    "adaptive, varying axis, parameters whole": (NONE, NONE),
    "adaptive, rows": (NONE, {"all-reduce": 1}),
    "adaptive, normalized axis": ({"all-gather": 1}, {"all-gather": 3}),
    "adaptive, varying and normalized axis": (
        {"all-gather": 1},
        {"all-gather": 3},
    ),
}


# The numbers of each all-gather, for each row and part of it.
GATHERED = {"layer_norm": ([5], [5, 3, 2]), "rms_norm": ([2], [2, 2, 1])}


def reports() -> list[dict]:
    script = Path(__file__).parents[1] / "support" / "sharded_calls.py"
    # XLA's older compiler of loops takes half as long. The programs it gets are the same.
    flags = "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
    flags += " --xla_cpu_parallel_codegen_split_count=1"
    return [json.loads(line) for line in run_script(script, XLA_FLAGS=flags).splitlines()]


def judge(found: dict) -> None:
    """Check that results are within their bounds."""
    kind, bounds = found["kind"], accuracy.BOUNDS[found["dtype"]]
    x, weight, bias, dy = map(np.asarray, arrays_for(found["what"], found["dtype"]))
    y = np.array(found["y"]).astype(x.dtype)
    dx, dweight, *dbias = (np.array(array).astype(x.dtype) for array in found["gradients"])
    options = {"kind": kind, "axis": -1, "eps": 1e-5 if kind == "layer_norm" else 1e-6}
    bias = bias if kind == "layer_norm" else None
    assert accuracy.y_error(y, x, weight, bias, **options) <= bounds.y
    assert accuracy.dx_error(dx, dy, x, weight, **options) <= bounds.dx
    assert accuracy.dweight_error(dweight, dy, x, **options) <= bounds.parameter
    for gradient in dbias:
        assert accuracy.dbias_error(gradient, dy, axis=-1) <= bounds.parameter


def judge_with_residual(found: dict) -> None:
    """Check that total is exact and the others are within their bounds."""
    kind, bounds = found["kind"], accuracy.BOUNDS[found["dtype"]]
    arrays = with_residual(found["what"], found["dtype"])
    x, residual, weight, bias, dy, dtotal = map(np.asarray, arrays)
    results = [np.array(each).astype(x.dtype) for each in found["results"]]
    y, total, dx, dresidual, dweight, *dbias = results
    assert_same_bits(total, reference.add(x, residual), "total")
    assert_same_bits(dresidual, dx, "dresidual")
    options = {"kind": kind, "axis": -1, "eps": 1e-5 if kind == "layer_norm" else 1e-6}
    bias = bias if kind == "layer_norm" else None
    assert accuracy.y_error(y, total, weight, bias, **options) <= bounds.y
    assert accuracy.dx_error(dx, dy, total, weight, dtotal=dtotal, **options) <= bounds.dx
    assert accuracy.dweight_error(dweight, dy, total, **options) <= bounds.parameter
    for gradient in dbias:
        assert accuracy.dbias_error(gradient, dy, axis=-1) <= bounds.parameter


def judge_with_gate(found: dict) -> None:
    """Check that all results are within their bounds."""
    arrays = with_gate(found["what"], found["dtype"])
    x, gate, weight, bias, dy = map(np.asarray, arrays)
    names = ("y", "dx", "dgate", "dweight", "dbias")
    results = [np.array(each).astype(x.dtype) for each in found["results"]]
    kind = found["kind"]
    errors = accuracy.gated_errors(
        dict(zip(names, results, strict=False)),
        *(x, gate, weight, bias if kind == "layer_norm" else None, dy),
        kind=kind,
        eps=1e-5 if kind == "layer_norm" else 1e-6,
        **found["gating"],
    )
    assert max(errors.values()) <= accuracy.GATED_BOUND, errors


def test_sharded_calls_are_right_and_communicate_no_more_than_needed() -> None:
    every = reports()
    calls, every = every[: len(CALLS)], every[len(CALLS) :]
    of_sums, others = every[: len(RESIDUAL_CALLS)], every[len(RESIDUAL_CALLS) :]
    of_gates, others = others[: len(GATED_CALLS)], others[len(GATED_CALLS) :]
    of_8_bits, (in_shard_map, *others) = others[:4], others[4:]
    uneven, within_shard_map, explicit, parameters, pmap, batched, *others = others
    residual, explicit_residual, gate, bits, named, exported, *of_flax = others
    assert {each["what"] for each in calls} == set(COLLECTIVES)
    for each in calls:
        what = (each["what"], each["kind"], each["dtype"], each["is_named"])
        assert (each["forward"], each["backward"]) == COLLECTIVES[each["what"]], what
        gathered = GATHERED[each["kind"]] if "all-gather" in each["forward"] else ([], [])
        assert tuple(map(sorted, each["gathered"])) == tuple(map(sorted, gathered)), what
        assert each["kept"] == [True, True], f"{what}: y and dx are not sharded as x"
        judge(each)
    for each in of_sums:
        what = (each["what"], each["kind"], each["dtype"])
        assert (each["forward"], each["backward"]) == COLLECTIVES[each["what"]], what
        assert each["kept"] == [True] * 3, f"{what}: y, total and dx are not sharded as x"
        judge_with_residual(each)
    for each in of_gates:
        what = (each["what"], each["kind"], each["dtype"])
        assert (each["forward"], each["backward"]) == COLLECTIVES[each["what"]], what
        assert each["kept"] == [True] * 3, f"{what}: y, dx and dgate are not sharded as x"
        judge_with_gate(each)
    for each, (gathers, steps) in zip(of_8_bits, ((0, 0), (0, 0), (2, 1), (1, 1)), strict=True):
        assert each["collectives"] == ({"all-gather": gathers} if gathers else {})
        assert each["kept"], "q is not sharded as x"
        assert each["steps"] <= steps
        assert each["nan"] == [[[0, 0, 0]]] * len(each["scales"])
        assert all(error <= 1e-5 * steps for error in each["scales"])
    assert in_shard_map["differences"] == [0] * 4
    assert gate["difference"] < 1e-5
    assert residual["difference"] < 1e-5
    assert explicit_residual["difference"] < 2e-6
    assert uneven["difference"] < 1e-5
    assert within_shard_map["difference"] < 1e-5
    assert explicit["difference"] < 2e-6
    assert parameters["difference"] < 2e-6
    assert pmap["differences"] == [0] * 12
    assert batched["difference"] < 1e-5
    assert bits["compared"] > 0
    assert bits["differences"] == 0
    assert max(named["differences"]) < 1e-5
    for each in of_flax:
        assert each["collectives"] == [{"all-gather": 1}] * 2
        assert max(each["differences"]) < 1e-5
    assert exported["kernels"] == [False, True]
    assert exported["differences"][0] < 1e-5
    assert exported["differences"][1] == 0


@pytest.mark.parametrize("names", ["cols", ("rows", "cols"), ["cols"], 1])
def test_an_axis_name_that_nothing_maps_over_is_refused(names) -> None:
    with pytest.raises(ValueError, match=r"axis_name is .* jax\.shard_map"):
        ours.layer_norm(np.ones((2, 4), np.float32), axis_name=names)


def test_the_axis_of_a_vmap_is_refused() -> None:
    function = functools.partial(ours.rms_norm, axis_name="batch")
    with pytest.raises(ValueError, match=r"'batch', but .* jax\.vmap, where no device"):
        jax.vmap(function, axis_name="batch")(np.ones((2, 4), np.float32))


@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_share_the_rows(devices) -> None:
    """Each has some of the devices; the collectives go over the loopback interface."""
    script = Path(__file__).parents[1] / "support" / "sharded_processes.py"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with ThreadPoolExecutor() as pool:
        printed = pool.map(
            lambda index: run_script(script, port, index, str(devices), timeout=60), "01"
        )
    for each in printed:
        found = json.loads(each.splitlines()[-1])
        assert found["devices"] == 2 * devices
        assert max(found["differences"]) < 1e-5
