"""Arrays sharded over 8 devices of the host, in a process of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from own_process import run_script

pytest.importorskip("jax")

from calls import assert_same_bits
from sharded_calls import (
    CALLS,
    GATED_CALLS,
    RESIDUAL_CALLS,
    arrays_for,
    with_gate,
    with_residual,
)

from layernorm import accuracy, reference

NONE: dict[str, int] = {}
# One all-gather for the moments; one all-reduce for dweight and dbias, and two of sums along rows.
COLLECTIVES = {
    "rows": (NONE, {"all-reduce": 1}),
    "two kept axes": (NONE, {"all-reduce": 1}),
    "rows over both": (NONE, {"all-reduce": 1}),
    "normalized axis": ({"all-gather": 1}, {"all-gather": 1, "all-reduce": 2}),
    "rows and normalized axis": ({"all-gather": 1}, {"all-gather": 1, "all-reduce": 3}),
    "normalized axis over both": ({"all-gather": 1}, {"all-gather": 1, "all-reduce": 2}),
    # dweight and dbias are sums over the second axis alone.
    "adaptive, varying axis": (NONE, NONE),
    "adaptive, varying axis, parameters whole": (NONE, NONE),
    "adaptive, rows": (NONE, {"all-reduce": 1}),
    "adaptive, normalized axis": ({"all-gather": 1}, {"all-gather": 1, "all-reduce": 2}),
    "adaptive, varying and normalized axis": (
        {"all-gather": 1},
        {"all-gather": 1, "all-reduce": 2},
    ),
}


def reports() -> list[dict]:
    script = Path(__file__).parents[1] / "support" / "sharded_calls.py"
    eight_devices = "--xla_force_host_platform_device_count=8"
    return [json.loads(line) for line in run_script(script, XLA_FLAGS=eight_devices).splitlines()]


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
    residual, explicit_residual, gate, exported = others
    assert {each["what"] for each in calls} == set(COLLECTIVES)
    for each in calls:
        what = (each["what"], each["kind"], each["dtype"])
        assert (each["forward"], each["backward"]) == COLLECTIVES[each["what"]], what
        gathered = [5 if each["kind"] == "layer_norm" else 2] * each["forward"].get("all-gather", 0)
        assert each["gathered"] == gathered, what
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
    assert exported["kernels"] == [False, True]
    assert exported["differences"][0] < 1e-5
    assert exported["differences"][1] == 0
