"""Data-parallel training and DTensor, on two processes over gloo."""

from functools import partial

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")

from processes import start_processes  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm.cli.problem import ordinary_arrays  # noqa: E402

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch has no distributed")

WORLD = 2


def a_problem():
    generator = torch.Generator().manual_seed(3)
    return ordinary_arrays(partial(torch.randn, generator=generator), (4, 6, 6))


def expected(axis):
    x, weight, bias, dy = a_problem()
    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    y = ours.layer_norm(x, (6,), weight, bias, axis=axis)
    return [y, *torch.autograd.grad(y, inputs, dy)]


def check_data_parallel() -> None:
    from torch.nn.parallel import DistributedDataParallel

    layer = ours.LayerNorm(6)
    parallel = DistributedDataParallel(layer)
    x, *_, dy = a_problem()
    here = slice(dist.get_rank(), None, WORLD)
    parallel(x[here]).backward(dy[here] * WORLD)
    alone = ours.LayerNorm(6)
    alone(x).backward(dy)
    torch.testing.assert_close(layer.weight.grad, alone.weight.grad)
    torch.testing.assert_close(layer.bias.grad, alone.bias.grad)


def check_dtensor() -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (WORLD,))
    # The same sizes with another axis, which DTensor's cache must tell apart.
    for axis, kept in ((-1, 1), (1, 2)):
        reference = expected(axis)
        for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
            x, weight, bias, dy = a_problem()
            x, dy = (distribute_tensor(each, mesh, [placement]) for each in (x, dy))
            weight, bias = (distribute_tensor(each, mesh, [Replicate()]) for each in (weight, bias))
            inputs = [each.requires_grad_() for each in (x, weight, bias)]
            y = ours.layer_norm(x, (6,), weight, bias, axis=axis)
            results = [y, *torch.autograd.grad(y, inputs, dy)]
            if placement in (Shard(0), Shard(kept)):
                assert y.placements == (placement,), (axis, placement, y.placements)
            for got, whole in zip(results, reference, strict=True):
                torch.testing.assert_close(got.full_tensor(), whole)


def check_dtensor_with_a_gate() -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (WORLD,))
    x, weight, bias, dy = a_problem()
    gate = torch.roll(x, 1, 1)
    for norm, parameters in ((ours.layer_norm, (weight, bias)), (ours.rms_norm, (weight,))):
        for norm_before_gate in (True, False):
            inputs = [each.detach().requires_grad_() for each in (x, gate, *parameters)]
            options = {"norm_before_gate": norm_before_gate}
            y = norm(inputs[0], (6,), *inputs[2:], gate=inputs[1], **options)
            reference = [y, *torch.autograd.grad(y, inputs, dy)]
            for of_x, of_gate in (
                *((each, each) for each in (Shard(0), Shard(1), Shard(2), Replicate())),
                *((Shard(0), Replicate()), (Replicate(), Shard(1))),
            ):
                placements = (of_x, of_gate, *[Replicate()] * len(parameters))
                own = [
                    distribute_tensor(each.detach(), mesh, [placement]).requires_grad_()
                    for each, placement in zip(inputs, placements, strict=True)
                ]
                got = norm(own[0], (6,), *own[2:], gate=own[1], **options)
                if of_x == of_gate and of_x in (Shard(0), Shard(1)):
                    assert got.placements == (of_x,)
                gradient = distribute_tensor(dy, mesh, [of_gate])
                everything = [got, *torch.autograd.grad(got, own, gradient)]
                for mine, whole in zip(everything, reference, strict=True):
                    torch.testing.assert_close(mine.full_tensor(), whole)


def check_quantized_dtensor() -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (WORLD,))
    x, weight, bias, _ = a_problem()
    functions = (ours.quantized_layer_norm, ours.quantized_rms_norm)
    for function, parameters in zip(functions, ((weight, bias), (weight,)), strict=True):
        for scale in (None, 0.05):
            expected = function(x, (6,), *parameters, scale=scale)
            for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
                x_here = distribute_tensor(x.detach(), mesh, [placement])
                own = [distribute_tensor(each.detach(), mesh, [Replicate()]) for each in parameters]
                given = scale
                if scale and placement == Shard(0):
                    given = distribute_tensor(torch.tensor(scale), mesh, [Replicate()])
                got = function(x_here, (6,), *own, scale=given)
                pairs = [(got, expected)] if scale else zip(got, expected, strict=True)
                for mine, whole in pairs:
                    if placement in (Shard(0), Shard(1)):
                        assert mine.placements == (placement,)
                    assert torch.equal(mine.full_tensor(), whole)


def check_dtensor_with_a_residual() -> None:
    from torch.distributed.tensor import (
        DTensor,
        Partial,
        Replicate,
        Shard,
        distribute_tensor,
        init_device_mesh,
    )

    mesh = init_device_mesh("cpu", (WORLD,))
    x, weight, bias, dy = a_problem()
    residual = torch.ones_like(x)
    for norm, parameters in ((ours.layer_norm, (weight, bias)), (ours.rms_norm, (weight,))):
        inputs = [each.requires_grad_() for each in (x, residual, *parameters)]
        results = norm(x, (6,), *parameters, residual=residual)
        reference = [*results, *torch.autograd.grad(results, inputs, (dy, dy))]
        for of_x, of_residual in (
            *((each, each) for each in (Shard(0), Shard(1), Shard(2), Replicate())),
            *((Shard(0), Replicate()), (Replicate(), Shard(1)), (Partial(), Shard(0))),
        ):
            if of_x == Partial():  # as the product of a row-wise parallel layer comes
                part = x.detach() / WORLD
                own_x = DTensor.from_local(part, mesh, [of_x])
            else:
                own_x = distribute_tensor(x.detach(), mesh, [of_x])
            own = [own_x, distribute_tensor(residual.detach(), mesh, [of_residual])]
            own += [distribute_tensor(each.detach(), mesh, [Replicate()]) for each in parameters]
            own = [each.requires_grad_() for each in own]
            gradient = distribute_tensor(dy, mesh, [of_residual])
            got = norm(own[0], (6,), *own[2:], residual=own[1])
            if of_x == of_residual and of_x in (Shard(0), Shard(1)):
                assert all(each.placements == (of_x,) for each in got)
            everything = [*got, *torch.autograd.grad(got, own, (gradient, gradient))]
            for mine, whole in zip(everything, reference, strict=True):
                torch.testing.assert_close(mine.full_tensor(), whole)


def check_dtensor_with_parameters_over_kept_axes() -> None:
    """Sharded along an axis that they vary along, each process has its own part of them."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(5)
    x, weight, bias, dy = (torch.randn(*each, 6) for each in ((4, 2), (4, 1), (2,), (4, 2)))
    inputs = [each.requires_grad_() for each in (x, weight, bias)]
    y = ours.layer_norm(x, (6,), weight, bias)
    reference = [y, *torch.autograd.grad(y, inputs, dy)]
    for of_x, of_weight, of_bias in (
        (Shard(0), Shard(0), Replicate()),
        (Shard(0), Replicate(), Replicate()),
        (Shard(1), Replicate(), Shard(0)),
        (Replicate(), Replicate(), Replicate()),
    ):
        placements = (of_x, of_weight, of_bias)
        sharded = [
            distribute_tensor(each.detach(), mesh, [placement]).requires_grad_()
            for each, placement in zip(inputs, placements, strict=True)
        ]
        y = ours.layer_norm(sharded[0], (6,), *sharded[1:])
        assert y.placements == (of_x,)
        results = [y, *torch.autograd.grad(y, sharded, distribute_tensor(dy, mesh, [of_x]))]
        for got, whole in zip(results, reference, strict=True):
            torch.testing.assert_close(got.full_tensor(), whole)


def work() -> None:
    check_data_parallel()
    check_dtensor()
    check_dtensor_with_parameters_over_kept_axes()
    check_dtensor_with_a_residual()
    check_dtensor_with_a_gate()
    check_quantized_dtensor()


def test_two_processes_have_the_results_of_one() -> None:
    start_processes(work, WORLD)
