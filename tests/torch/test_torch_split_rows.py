"""DTensors that are sharded along normalized axes, on four processes over gloo."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from own_process import run_script

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available():
    pytest.skip("PyTorch has no distributed", allow_module_level=True)

from processes import start_processes  # noqa: E402
from split_calls import (  # noqa: E402
    MESHES,
    WORLD,
    few_calls,
    init_device_mesh,
    placed,
)
from torch.distributed.tensor import (  # noqa: E402
    DeviceMesh,
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.utils import checkpoint  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm import accuracy, reference  # noqa: E402
from layernorm.torch import split_rows  # noqa: E402

SCRIPT = Path(__file__).parents[1] / "support" / "split_calls.py"


def test_calls_are_within_their_bounds_and_send_a_few_numbers_a_row() -> None:
    found = [json.loads(line) for line in run_script(SCRIPT).splitlines()]
    for call, each in zip(few_calls(), found, strict=True):
        bounds = accuracy.BOUNDS[call.dtype]
        limits = {"y": bounds.y, "dx": bounds.dx, "dweight": bounds.parameter}
        limits["dbias"] = bounds.parameter
        for errors in (each["errors"], each["errors_of_formula"]):
            for name, error in errors.items():
                limit = accuracy.GATED_BOUND if "gate" in call.beside else limits[name]
                assert error <= limit, (call, name)
        levels = call.split_over()
        centered, is_wide = call.kind == "layer_norm", "gate" in call.beside
        is_wide = is_wide or call.dtype == "float64"
        moments = 8 * (1 if not centered else 3 if is_wide else 2)
        others = sum(MESHES[call.mesh][dim] - 1 for dim in levels)
        assert each["bytes"] == [moments * others, (24 if centered else 16) * others], call
        reduced = {"all_reduce": 1} if Partial() in call.placements else {}
        of_rows = {"all_reduce": 1 + centered} if Shard(0) in call.placements else {}
        gathers = {"all_gather_into_tensor": len(levels)}
        assert each["collectives"] == [gathers | reduced, gathers | of_rows], call


@pytest.mark.parametrize("far", [0, -1])
def test_the_merge_of_many_parts_is_exact(far) -> None:
    """float64, one part far from all others: the worst case, for which there are no processes."""
    parts, cols = 1024, 8
    x = np.random.default_rng(1).standard_normal((parts, cols))
    x[far] += 1e4
    wide = x.astype(np.longdouble)
    mean = wide.mean(1)
    rounded = mean.astype(np.float64)
    moments = (wide.std(1), rounded, mean - rounded)
    given = [torch.tensor(each.astype(np.float64))[:, None] for each in moments]
    level = split_rows.Level("", [cols] * parts)
    deviation, mean, residual = (float(each) for each in split_rows._merged(level, given, True))
    assert abs(deviation / float(wide.std()) - 1) <= 4 * 2.0**-53
    assert abs(np.longdouble(mean) + residual - wide.mean()) <= 2.0**-53 * deviation


def test_four_processes_have_the_results_of_one() -> None:
    start_processes(work, WORLD)


# ---- what the processes do


def check_bits() -> None:
    """The same in each run, on each process, and for any number of rows."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(1)
    part, dy = torch.randn(2, 9, 1, 37).unbind()
    for norm in (ours.layer_norm, ours.rms_norm):
        for axis, sizes in ((-1, (9, WORLD * 37)), (0, (WORLD * 37, 9))):

            def results(rows, norm=norm, axis=axis, sizes=sizes):
                given = [
                    each[rows].expand(-1, WORLD, -1).reshape(-1, sizes[axis]) for each in (part, dy)
                ]
                if axis == 0:
                    given = [each.T.contiguous() for each in given]
                x, of_y = (distribute_tensor(each, mesh, [Shard(axis % 2)]) for each in given)
                x.requires_grad_()
                y = norm(x, (sizes[axis],), eps=1e-5, axis=axis)
                whole = [y, *torch.autograd.grad(y, x, of_y)]
                return [each.full_tensor().detach().movedim(axis, -1) for each in whole]

            every = results(slice(None))
            for one, again in zip(every, results(slice(None)), strict=True):
                assert torch.equal(one, again)
                # All processes have the same numbers here.
                assert torch.equal(one, one[:, :37].repeat(1, WORLD))
            # One strided row would be a contiguous one.
            for rows in (slice(0, 1 if axis == -1 else 2), slice(3, 5), slice(2, 9)):
                for one, alone in zip(every, results(rows), strict=True):
                    assert torch.equal(one[rows], alone), (norm, axis, rows)


def check_parameters() -> None:
    """Whole on each process, or varying along kept axes, zero-centered, alone, or frozen."""
    mesh = init_device_mesh("cpu", MESHES["2x2"])
    torch.manual_seed(2)
    x, dy = torch.randn(2, 4, 3, 10).unbind()
    shapes = ((10,), (4, 1, 10), (3, 10), (1, 1, 10))
    for at, (of_weight, of_bias) in enumerate((a, b) for a in shapes for b in shapes):
        weight, bias = torch.randn(of_weight), torch.randn(of_bias)
        options = {"zero_centered_weight": at % 2 == 0}
        one = ((True, False), (False, True)) if of_weight == of_bias else ()
        for used in ((True, True), *one):
            given = [each if use else None for each, use in zip((weight, bias), used, strict=True)]
            inputs = [x, *(each for each in given if each is not None)]
            alone = [each.clone().requires_grad_() for each in inputs]
            sharded = [
                placed(each, mesh, [Shard(0), Shard(2)] if each is x else [Replicate()] * 2)
                for each in inputs
            ]
            sharded = [each.requires_grad_() for each in sharded]
            results = []
            for tensors, of_y in ((alone, dy), (sharded, placed(dy, mesh, [Shard(0), Shard(2)]))):
                own = iter(tensors[1:])
                parameters = [next(own) if use else None for use in used]
                y = ours.layer_norm(tensors[0], (10,), *parameters, **options)
                results.append([y, *torch.autograd.grad(y, tensors, of_y)])
            for whole, mine in zip(*results, strict=True):
                torch.testing.assert_close(mine.full_tensor(), whole)
    frozen = [distribute_tensor(each, mesh, [Replicate()] * 2) for each in (weight, bias)]
    layer_x = placed(x, mesh, [Shard(0), Shard(2)])
    assert not ours.layer_norm(layer_x, (10,), *frozen).requires_grad
    y = ours.layer_norm(layer_x, (10,), frozen[0].requires_grad_(), frozen[1])
    y.sum().backward()
    assert frozen[0].grad is not None
    assert frozen[1].grad is None
    assert layer_x.grad is None


def check_several_normalized_axes() -> None:
    mesh = init_device_mesh("cpu", MESHES["2x2"])
    torch.manual_seed(3)
    x, dy = torch.randn(2, 5, 6, 7).unbind()
    weight, bias = torch.randn(2, 6, 7).unbind()
    alone = [each.clone().requires_grad_() for each in (x, weight, bias)]
    y = ours.layer_norm(alone[0], (6, 7), *alone[1:])
    expected = [y, *torch.autograd.grad(y, alone, dy)]
    for placements in (
        *([Shard(1), Shard(2)], [Shard(2), Shard(2)], [Shard(0), Shard(1)], [Shard(2), Shard(1)]),
        [Replicate(), Shard(2)],
    ):
        sharded = [placed(x, mesh, placements)]
        sharded += [distribute_tensor(each, mesh, [Replicate()] * 2) for each in (weight, bias)]
        sharded = [each.requires_grad_() for each in sharded]
        y = ours.layer_norm(sharded[0], (6, 7), *sharded[1:])
        assert list(y.placements) == placements
        found = [y, *torch.autograd.grad(y, sharded, placed(dy, mesh, placements))]
        for mine, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.full_tensor(), whole)


def check_residuals() -> None:
    """Placed as x or otherwise, Partial, wider than x; where y or total is not used."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(4)
    x, residual, dy, dtotal = torch.randn(4, 3, 12).unbind()
    for dtype in (torch.float32, torch.bfloat16):
        given = [x.to(dtype), residual]
        for of_x, of_residual in (
            *((Shard(1), Shard(1)), (Replicate(), Shard(1)), (Shard(1), Replicate())),
            *((Partial(), Shard(1)), (Shard(1), Partial())),
        ):
            alone = [each.clone().requires_grad_() for each in given]
            whole = ours.rms_norm(alone[0], (12,), residual=alone[1])
            sharded = []
            for each, placement in zip(given, (of_x, of_residual), strict=True):
                if placement == Partial():  # one process has all of the sum
                    local = each if dist.get_rank() == 0 else torch.zeros_like(each)
                    sharded.append(DTensor.from_local(local, mesh, [placement], run_check=False))
                else:
                    sharded.append(distribute_tensor(each, mesh, [placement]))
            sharded = [each.requires_grad_() for each in sharded]
            mine = ours.rms_norm(sharded[0], (12,), residual=sharded[1])
            assert all(each.placements == (Shard(1),) for each in mine)
            for used in ((True, True), (True, False), (False, True)):
                outputs, expected = [
                    [each for each, use in zip(pair, used, strict=True) if use]
                    for pair in (mine, whole)
                ]
                of_whole = [g.to(e.dtype) for g, e in zip((dy, dtotal), expected, strict=False)]
                of_mine = [distribute_tensor(each, mesh, [Shard(1)]) for each in of_whole]
                gradients = [
                    torch.autograd.grad(results, inputs, of, retain_graph=True)
                    for results, inputs, of in (
                        (outputs, sharded, of_mine),
                        (expected, alone, of_whole),
                    )
                ]
                found = [*outputs, *gradients[0]]
                for got, right in zip(found, [*expected, *gradients[1]], strict=True):
                    assert got.dtype == right.dtype
                    torch.testing.assert_close(got.full_tensor(), right)


def check_second_derivatives() -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(5)
    x, gate, dy, u = torch.randn(4, 3, 10, dtype=torch.float64).unbind()
    weight, bias = torch.randn(2, 10, dtype=torch.float64).unbind()
    for beside in ({}, {"gate": gate}, {"gate": gate, "norm_before_gate": False}):

        def gradients(place, beside=beside):
            inputs = [place(each).requires_grad_() for each in (x, weight, bias, gate)]
            options = beside | ({"gate": inputs[3]} if beside else {})
            inputs = inputs if beside else inputs[:3]
            y = ours.layer_norm(inputs[0], (10,), *inputs[1:3], **options)
            of_y = place(dy).requires_grad_()
            first = torch.autograd.grad(y, inputs, of_y, create_graph=True)
            second = torch.autograd.grad(first[0], [of_y, inputs[0], inputs[1]], place(u))
            return [*first, *second]

        def sharded(given):
            return distribute_tensor(given, mesh, [Shard(given.dim() - 1)])

        for mine, whole in zip(gradients(sharded), gradients(torch.clone), strict=True):
            torch.testing.assert_close(mine.full_tensor(), whole)


def check_edges() -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    bias = torch.arange(10.0)
    of_bias = distribute_tensor(bias, mesh, [Shard(0)])
    constant = distribute_tensor(
        torch.tensor([[1e30], [0.1], [3.0]]).expand(3, 10), mesh, [Shard(1)]
    )
    constant.requires_grad_()
    for eps in (1e-5, 0.0):
        y = ours.layer_norm(constant, (10,), None, of_bias, eps)
        assert torch.equal(y.full_tensor(), bias.expand(3, 10))
        (dx,) = torch.autograd.grad(y.sum(), constant)
        assert eps or torch.equal(dx.full_tensor(), torch.zeros(3, 10))
    huge = torch.full((2, 10), 1e308, dtype=torch.float64)
    own = distribute_tensor(huge, mesh, [Shard(1)]).requires_grad_()
    dy = torch.arange(20.0, dtype=torch.float64).reshape(2, 10)
    y = ours.layer_norm(own, (10,))
    y.backward(distribute_tensor(dy, mesh, [Shard(1)]))
    expected = (dy - dy.mean(1, keepdim=True)) / 1e-5**0.5
    torch.testing.assert_close(own.grad.full_tensor(), expected)
    check_rows_of_which_no_statistics_are_saved(mesh)
    infinite = torch.ones(2, 10)
    infinite[1, 9] = float("inf")
    own = distribute_tensor(torch.randn(2, 10), mesh, [Shard(1)]).requires_grad_()
    ours.layer_norm(own, (10,)).backward(distribute_tensor(infinite, mesh, [Shard(1)]))
    assert own.grad.full_tensor().isnan().all(1).tolist() == [False, True]
    x = torch.randn(4, 10)
    x[0, 9], x[2, 0] = float("nan"), float("inf")  # each in the part of one process
    own = distribute_tensor(x, mesh, [Shard(1)]).requires_grad_()
    y = ours.layer_norm(own, (10,))
    (dx,) = torch.autograd.grad(y.square().sum(), own)
    for found in (y.full_tensor(), dx.full_tensor()):
        assert found.isnan().all(1).tolist() == found.isnan().any(1).tolist() == [True, False] * 2
    for sizes in ((0, 10), (3, 0), (3, 1)):
        empty = distribute_tensor(torch.ones(sizes), mesh, [Shard(1)]).requires_grad_()
        y = ours.layer_norm(empty, sizes[1:])
        assert y.shape == sizes
        (dx,) = torch.autograd.grad(y.sum(), empty)
        assert torch.equal(dx.full_tensor(), torch.zeros(sizes))
    half = torch.randn(2, 10, dtype=torch.bfloat16)
    with torch.inference_mode():
        whole = ours.rms_norm(half, (10,))
        mine = ours.rms_norm(distribute_tensor(half, mesh, [Shard(1)]), (10,))
        assert torch.equal(mine.full_tensor(), whole)


def check_rows_of_which_no_statistics_are_saved(mesh) -> None:
    """dweight and dbias of rows of tiny numbers, for which the kernels would take their own."""
    torch.manual_seed(8)
    x, dy = torch.randn(2, 4, 10)
    x = x * 1e-30
    bias, weight = torch.randn(2, 10)
    sharded = [distribute_tensor(each, mesh, [Shard(each.dim() - 1)]) for each in (x, weight, bias)]
    for each in sharded:
        each.requires_grad_()
    y = ours.layer_norm(sharded[0], (10,), *sharded[1:], eps=1e-70)
    y.backward(distribute_tensor(dy, mesh, [Shard(1)]))
    dweight, dbias = (each.grad.full_tensor().numpy() for each in sharded[1:])
    given = dy.numpy(), x.numpy()
    assert (
        accuracy.dweight_error(dweight, *given, eps=1e-70) <= accuracy.BOUNDS["float32"].parameter
    )
    assert accuracy.dbias_error(dbias, dy.numpy()) <= accuracy.BOUNDS["float32"].parameter


def check_dy_along_xhat() -> None:
    """dx is small by cancellation, and what the roundings of a row have in common would show."""
    mesh = init_device_mesh("cpu", (WORLD,))
    rng = np.random.default_rng(0)
    for dtype, cols in (("float32", 4), ("float32", 7), ("float64", 3), ("float64", 7)):
        rows = 4000
        first = rng.random((rows, cols)) < rng.random((rows, 1))
        first[:, 0], first[:, 1] = True, False
        a, b = rng.normal(size=(2, rows, 1)) * np.exp(2 * rng.normal(size=(2, rows, 1)))
        x = np.where(first, a, b).astype(dtype)
        xhat = reference.normalize(x, eps=0.0)
        dy = (rng.normal(size=(rows, 1)) * xhat).astype(dtype)
        own = distribute_tensor(torch.tensor(x), mesh, [Shard(1)]).requires_grad_()
        y = ours.layer_norm(own, (cols,))
        y.backward(distribute_tensor(torch.tensor(dy), mesh, [Shard(1)]))
        dx = own.grad.full_tensor().numpy()
        if dist.get_rank() == 0:
            assert accuracy.dx_error(dx, dy, x) <= accuracy.BOUNDS[dtype].dx, (dtype, cols)


def check_errors() -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    x = distribute_tensor(torch.randn(2, 8), mesh, [Shard(1)])
    with pytest.raises(
        RuntimeError, match=r"weight is no DTensor, but .* pass .*distribute_tensor"
    ):
        ours.layer_norm(x, (8,), torch.ones(8))
    for beside in ("residual", "gate"):
        with pytest.raises(RuntimeError, match=f"one of {beside} and the input is a DTensor"):
            ours.layer_norm(x, (8,), **{beside: torch.ones(2, 8)})
    other = init_device_mesh("cpu", MESHES["2x2"])
    weight = distribute_tensor(torch.ones(8), other, [Replicate()] * 2)
    with pytest.raises(RuntimeError, match="weight is on DeviceMesh"):
        ours.layer_norm(x, (8,), weight)
    with pytest.raises(RuntimeError, match=r"expected input with shape \[\*, 7\]"):
        ours.layer_norm(x, (7,))


def check_compiled() -> None:
    """In one graph, with the bits of an eager call; also as the first call of the process."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(6)
    x, residual, dy = (distribute_tensor(torch.randn(3, 10), mesh, [Shard(1)]) for _ in range(3))
    weight = distribute_tensor(torch.randn(10), mesh, [Shard(0)])
    inputs = [each.requires_grad_() for each in (x, weight, residual)]

    def function(x, weight, residual):
        return ours.layer_norm(x, (10,), weight, residual=residual)[0]

    results = []
    for call in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        y = call(*inputs)
        assert y.placements == (Shard(1),)
        results.append([y, *torch.autograd.grad(y, inputs, dy)])
    for compiled, eager in zip(*results, strict=True):
        assert compiled.placements == eager.placements
        assert torch.equal(compiled.full_tensor(), eager.full_tensor())


def check_a_mesh_of_some_processes() -> None:
    whole = torch.arange(16.0).reshape(2, 8)
    mesh = DeviceMesh("cpu", [0, 1])
    x = distribute_tensor(whole, mesh, [Shard(1)]).requires_grad_()
    y = ours.layer_norm(x, (8,))
    assert y.shape == (2, 8)
    assert y.placements == (Shard(1),)
    if dist.get_rank() < 2:
        y.backward(torch.ones_like(y))
        assert x.grad.placements == (Shard(1),)
        torch.testing.assert_close(y.full_tensor(), ours.layer_norm(whole, (8,)))


def check_transforms() -> None:
    """vmap and torch.func.grad gather x; PyTorch itself refuses forward mode."""
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(7)
    whole = torch.randn(3, 2, 10)
    x = distribute_tensor(whole, mesh, [Shard(2)])
    norm = partial(ours.rms_norm, normalized_shape=(10,))
    torch.testing.assert_close(torch.func.vmap(norm)(x).full_tensor(), norm(whole))
    gradient = torch.func.grad(lambda given: norm(given).square().sum())
    torch.testing.assert_close(gradient(x).full_tensor(), gradient(whole))
    with pytest.raises(NotImplementedError), torch.autograd.forward_ad.dual_level():
        norm(torch.autograd.forward_ad.make_dual(x, x))


def check_selective_checkpointing() -> None:
    """What is saved may be any of the operators, the collectives among them."""
    mesh = init_device_mesh("cpu", (WORLD,))
    x, dy = (distribute_tensor(torch.randn(3, 10), mesh, [Shard(1)]) for _ in range(2))
    x.requires_grad_()
    policy = checkpoint.CheckpointPolicy
    norm = partial(ours.layer_norm, normalized_shape=(10,))
    (expected,) = torch.autograd.grad(norm(x), x, dy)
    for saved in ("all_gather", "split_rows", "layernorm", "aten", "c10d"):

        def decide(_ctx, operator, *_args, saved=saved, **_kwargs):
            return policy.MUST_SAVE if saved in str(operator) else policy.PREFER_RECOMPUTE

        contexts = partial(checkpoint.create_selective_checkpoint_contexts, decide)
        y = checkpoint.checkpoint(norm, x, use_reentrant=False, context_fn=contexts)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert torch.equal(dx.full_tensor(), expected.full_tensor()), saved


def check_8_bits() -> None:
    """Where rows are split, x is gathered, with the bits of one process."""
    mesh = init_device_mesh("cpu", (WORLD,))
    x = torch.randn(3, 10)
    dist.broadcast(x, 0)
    whole = ours.quantized_rms_norm(x, (10,))
    mine = ours.quantized_rms_norm(distribute_tensor(x, mesh, [Shard(1)]), (10,))
    assert all(torch.equal(a.full_tensor(), b) for a, b in zip(mine, whole, strict=True))


def work() -> None:
    for check in (
        *(check_compiled, check_transforms, check_selective_checkpointing),
        *(check_a_mesh_of_some_processes, check_dy_along_xhat),
        *(check_bits, check_parameters, check_several_normalized_axes, check_residuals),
        *(check_second_derivatives, check_edges, check_errors, check_8_bits),
    ):
        check()
