"""A script that starts 4 processes and reports on calls of DTensors whose rows are split.

With --table, as a Markdown table: the largest errors, in ulp, of y / dx / dweight and dbias, of
both norms; and the bytes that reach a process for a row of layer norm, forward / backward.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from pairs import half_of_all
from processes import start_processes
from torch import Tensor
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.debug import CommDebugMode

import layernorm.torch as ours
from layernorm import accuracy
from layernorm.torch import parts_of_rows

WORLD = 4
MESHES = {"4": (4,), "2x2": (2, 2)}
TYPES = ("float32", "bfloat16", "float16", "float64")


class Call(NamedTuple):
    """x is (3, 4, size), or with axis 1 (3, size, 4), of rows of every kind."""

    mesh: str
    placements: tuple[Any, ...]
    size: int = 24
    axis: int = -1
    kind: str = "layer_norm"
    dtype: str = "float32"
    beside: str = ""  # "residual", "gate", "gate first"

    def split_over(self) -> list[int]:
        """Return the axes of the mesh along which rows are split."""
        axis = Shard(self.axis % 3)
        return [dim for dim, placement in enumerate(self.placements) if placement == axis]

    @property
    def options(self) -> dict[str, Any]:
        return {"axis": self.axis, "eps": 1e-5, "kind": self.kind}


COLS, ROWS = Shard(2), Shard(0)
PLACES = [
    Call("4", (COLS,)),
    Call("4", (COLS,), size=10),  # 3, 3, 3, 1
    Call("4", (COLS,), size=5),  # 2, 2, 1, 0
    Call("4", (Shard(1),), axis=1),
    Call("2x2", (ROWS, COLS)),
    Call("2x2", (COLS, COLS), size=10),  # (3, 2), (3, 2)
    Call("2x2", (Replicate(), COLS)),
    Call("2x2", (Partial(), COLS)),
    Call("2x2", (ROWS, Shard(1)), size=10, axis=1),
]
CALLS = [
    *(
        place._replace(kind=kind, dtype=dtype)
        for place in PLACES
        for kind in ("layer_norm", "rms_norm")
        for dtype in TYPES
    ),
    *(
        Call("2x2", (ROWS, COLS), 10, kind=kind, dtype=dtype, beside=beside)
        for kind in ("layer_norm", "rms_norm")
        for dtype in TYPES
        for beside in ("residual", "gate", "gate first")
    ),
]


def few_calls() -> list[Call]:
    """Return half of the calls, which have each pair of place, kind and type."""
    kinds = ("layer_norm", "rms_norm")
    places = list(dict.fromkeys(each._replace(kind="", dtype="") for each in CALLS))
    every = half_of_all(places, kinds, TYPES)
    return [place._replace(kind=kind, dtype=dtype) for place, kind, dtype in every]


def arrays_of(call: Call) -> dict[str, Tensor]:
    """Make x, weight, bias, dy, and the residual or the gate with dtotal."""
    rng = np.random.default_rng(8)
    size = call.size
    x, dy, other, dtotal = rng.normal(0.5, 1, (4, 3, 4, size))
    weight, bias = rng.normal(0.5, 1, (2, size))
    x[:, 0] = 1e3 + x[:, 0]  # far from zero
    x[:, 1] = np.linspace(-50, 50, size) + x[:, 1]  # each part's mean is far from the row's
    x[0, 2], x[1, 2] = x[0, 2] * 1e4, 3.0  # large; constant
    up = dy[:, 3:] > 0.5
    x[:, 3:], dy[:, 3:] = np.where(up, 1.3, -0.7), np.where(up, 1, -1) / weight  # g along xhat
    if call.dtype in ("float32", "float64", "bfloat16"):
        x[0, 2] *= 1e26  # the squares are out of float32's range
    if call.dtype == "float64":
        x[0, 2] *= 1e150  # and of float64's
        x[2, 2] *= 1e-200
    arrays = {"x": x, "dy": dy, "weight": weight, "bias": bias, "other": other, "dtotal": dtotal}
    if call.axis == 1:
        rows = ("x", "dy", "other", "dtotal")
        arrays |= {each: np.ascontiguousarray(arrays[each].swapaxes(1, 2)) for each in rows}
    dtype = getattr(torch, call.dtype)
    return {name: torch.tensor(array).to(dtype) for name, array in arrays.items()}


def as_numpy(given: Tensor) -> np.ndarray:
    if given.dtype != torch.bfloat16:
        return given.numpy()
    import ml_dtypes

    return given.float().numpy().astype(ml_dtypes.bfloat16)


class Traffic(CommDebugMode):
    """Counts the collectives, and the bytes that they bring to this process from the others."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if function is torch.ops._c10d_functional.all_gather_into_tensor.default:
            own, processes, _group = args
            self.bytes += (processes - 1) * own.numel() * own.itemsize
        return result

    def collectives(self) -> dict[str, int]:
        """Count the collectives of each kind."""
        return {str(name).split(".")[-1]: n for name, n in self.get_comm_counts().items()}


def placed(given: Tensor, mesh, placements) -> DTensor:
    """Distribute; where a placement is Partial, each process has its share of the sum."""
    if Partial() not in placements:
        return distribute_tensor(given, mesh, placements)
    whole = [Replicate() if each == Partial() else each for each in placements]
    local = distribute_tensor(given, mesh, whole).to_local() / 2
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=given.shape, stride=given.stride()
    )


def function_of(call: Call):
    norm = getattr(ours, call.kind)

    def run(x, weight, bias=None, other=None):
        parameters = (weight, bias) if call.kind == "layer_norm" else (weight,)
        beside: dict[str, Any] = {}
        if call.beside == "residual":
            beside = {"residual": other}
        elif call.beside:
            beside = {"gate": other, "norm_before_gate": call.beside == "gate"}
        return norm(x, (call.size,), *parameters, eps=1e-5, axis=call.axis, **beside)

    return run


def parameter_placements(call: Call) -> list[Any]:
    """Shard weight and bias as x's normalized axis is."""
    axis = call.axis % 3
    return [Shard(0) if each == Shard(axis) else Replicate() for each in call.placements]


def run(call: Call, mesh) -> dict[str, Any]:
    """Call forward and backward; return the results whole, and what was communicated."""
    arrays = arrays_of(call)
    names = ["x", "weight", *(["bias"] if call.kind == "layer_norm" else [])]
    of_parameter = parameter_placements(call)
    inputs = {
        name: placed(
            arrays[name], mesh, of_parameter if name in ("weight", "bias") else call.placements
        )
        for name in (*names, *(["other"] if call.beside else []))
    }
    for each in inputs.values():
        each.requires_grad_()
    with Traffic() as forward:
        results = function_of(call)(**inputs)
    results = results if isinstance(results, tuple) else (results,)
    whole = [Replicate() if each == Partial() else each for each in call.placements]
    assert all(list(each.placements) == whole for each in results), results[0].placements
    dys = [distribute_tensor(arrays[name], mesh, whole) for name in ("dy", "dtotal")]
    with Traffic() as backward:
        gradients = torch.autograd.grad(results, tuple(inputs.values()), dys[: len(results)])
    assert list(gradients[0].placements) == whole
    local = results[0].to_local()
    rows = local.numel() // max(1, local.shape[call.axis])
    found = dict(zip(("y", "total"), results, strict=False))
    found |= {f"d{name}": each for name, each in zip(inputs, gradients, strict=True)}
    return {
        "results": {name: each.full_tensor().detach() for name, each in found.items()},
        "collectives": [each.collectives() for each in (forward, backward)],
        "bytes": [each.bytes / max(1, rows) for each in (forward, backward)],
    }


def errors_of(call: Call, results: dict[str, Tensor]) -> dict[str, float]:
    """Measure the errors of the results, in ulp."""
    own = {name: as_numpy(each) for name, each in arrays_of(call).items()}
    found = {name: as_numpy(each) for name, each in results.items()}
    x, dy, weight = own["x"], own["dy"], own["weight"]
    bias = own["bias"] if call.kind == "layer_norm" else None
    if "gate" in call.beside:
        found["dgate"] = found.pop("dother")
        return accuracy.gated_errors(
            *(found, x, own["other"], weight, bias, dy),
            norm_before_gate=call.beside == "gate",
            **call.options,
        )
    dtotal = None
    if call.beside:
        x, dtotal = (torch.tensor(0), own["dtotal"])
        x = as_numpy(arrays_of(call)["x"] + arrays_of(call)["other"])
        assert found["total"].tobytes() == x.tobytes()
        assert found["dother"].tobytes() == found["dx"].tobytes()
    definition = {name: call.options[name] for name in ("axis", "eps", "kind")}
    errors = {
        "y": accuracy.y_error(found["y"], x, weight, bias, **definition),
        "dx": accuracy.dx_error(found["dx"], dy, x, weight, dtotal=dtotal, **definition),
        "dweight": accuracy.dweight_error(found["dweight"], dy, x, **definition),
    }
    if bias is not None:
        errors["dbias"] = accuracy.dbias_error(found["dbias"], dy, axis=call.axis)
    return errors


def report() -> None:
    """Print a line of JSON for each of a few calls."""
    for found in _measure(few_calls()):
        print(json.dumps(found), flush=True)


def print_table() -> None:
    """Print a line for each mesh and placement."""
    found = dict(zip(CALLS, _measure(CALLS), strict=False))
    if not found:
        return
    print(f"| mesh | x | cols | {' | '.join(TYPES)} | bytes | collectives |")
    print(f"|---|---|--:|{'---|' * len(TYPES)}---|---|")
    plain = Call._field_defaults
    for place in dict.fromkeys(each._replace(kind="", dtype="") for each in CALLS):
        alike = {c: f for c, f in found.items() if c._replace(kind="", dtype="") == place}
        cells = [_errors([f for c, f in alike.items() if c.dtype == dtype]) for dtype in TYPES]
        of_layer_norm = alike[place._replace(kind=plain["kind"], dtype=plain["dtype"])]
        numbers = " / ".join(f"{each:g}" for each in of_layer_norm["bytes"])
        kinds = " / ".join(
            ", ".join(f"{n} {kind.replace('_into_tensor', '')}" for kind, n in each.items())
            for each in of_layer_norm["collectives"]
        )
        x = ", ".join(map(str, place.placements)) + (f", {place.beside}" if place.beside else "")
        print(f"| {place.mesh} | {x} | {place.size} | {' | '.join(cells)} | {numbers} | {kinds} |")


def _errors(found: Sequence[dict[str, Any]]) -> str:
    names = (("y",), ("dx", "dgate"), ("dweight", "dbias"))
    worst = (
        max(each["errors"].get(name, 0) for each in found for name in group) for group in names
    )
    return " / ".join(f"{each:.2f}" for each in worst)


def _measure(calls: Sequence[Call]) -> Iterator[dict[str, Any]]:
    """Run the calls; yield errors and communication on the first process.

    Beside them, the errors of what devices without kernels of ours compute.
    """
    kernels = parts_of_rows.has_kernels
    for call in calls:
        mesh = init_device_mesh("cpu", MESHES[call.mesh])
        found = run(call, mesh)
        parts_of_rows.has_kernels = lambda _: False
        formula = run(call, mesh)
        parts_of_rows.has_kernels = kernels
        if dist.get_rank() == 0:
            errors, of_formula = (errors_of(call, each.pop("results")) for each in (found, formula))
            yield {"errors": errors, "errors_of_formula": of_formula, **found}


if __name__ == "__main__":
    start_processes(print_table if "--table" in sys.argv else report, WORLD)
