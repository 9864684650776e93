"""PyTorch's own suites, run on our functions and modules: OpInfo and ModuleInfo.

The expected results are PyTorch's in float64, because its own 16-bit gradients over many rows are
wrong.
"""

import copy
import re
from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")
methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")
modules = pytest.importorskip("torch.testing._internal.common_modules")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.utils._pytree import (  # noqa: E402
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

import layernorm.torch as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")

OPERATORS = {
    info.name: info
    for info in methods.op_db
    if info.name in ("nn.functional.layer_norm", "native_layer_norm", "nn.functional.rms_norm")
}
FUNCTIONS = {
    "nn.functional.layer_norm": ours.layer_norm,
    "nn.functional.rms_norm": ours.rms_norm,
}
# What runs: our functions in place of PyTorch's, and PyTorch's own over our kernels.
WAYS = [
    *[(name, "ours") for name in FUNCTIONS],
    *[(name, "accelerated") for name in OPERATORS],
]
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CLASSES = {"nn.LayerNorm": ours.LayerNorm, "nn.RMSNorm": ours.RMSNorm}

each_way = pytest.mark.parametrize(("name", "way"), WAYS, ids=[" ".join(each) for each in WAYS])


def function_of(name: str, way: str):
    """Return the function, and a function that makes the context to call it in."""
    if way == "ours":
        return FUNCTIONS[name], nullcontext
    return OPERATORS[name].op, ours.accelerate


def widened(given):
    """Return the same with float64 tensors, the leaves of a new graph."""
    return tree_map(
        lambda each: (
            each.detach().double().requires_grad_(each.requires_grad)
            if isinstance(each, torch.Tensor)
            else each
        ),
        given,
    )


def asking(given) -> list["torch.Tensor"]:
    """Return the tensors that require a gradient."""
    leaves = tree_leaves(given)
    return [each for each in leaves if isinstance(each, torch.Tensor) and each.requires_grad]


def first(results):
    return results if isinstance(results, torch.Tensor) else results[0]


def test_the_suites_are_found() -> None:
    assert len(OPERATORS) == 3
    assert {info.name for info in modules.module_db} >= set(CLASSES)


@pytest.mark.parametrize(
    ("name", "way", "dtype"),
    [
        (*each, dtype)
        for each in WAYS
        for dtype in (TYPES if "ours" in each else (torch.float32, torch.bfloat16))
    ],
    ids=str,
)
def test_samples_have_pytorchs_results_and_gradients(name, way, dtype) -> None:
    function, context = function_of(name, way)
    info = OPERATORS[name]
    count = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        count += 1
        call = (sample.input, sample.args, sample.kwargs)
        with context():
            got = first(function(call[0], *call[1], **call[2]))
        in_float64 = widened(call)
        if name == "nn.functional.rms_norm" and in_float64[2].get("eps") is None:
            # None means another eps in float64.
            in_float64[2]["eps"] = torch.finfo(
                dtype if dtype == torch.float64 else torch.float32
            ).eps
        expected = first(info.op(in_float64[0], *in_float64[1], **in_float64[2]))
        torch.testing.assert_close(got, expected.to(dtype))
        assert got.is_contiguous() == expected.is_contiguous()
        dy = torch.randn_like(got)
        with context():
            gradients = torch.autograd.grad(got, asking(call), dy)
        references = torch.autograd.grad(expected, asking(in_float64), dy.double())
        for gradient, reference in zip(gradients, references, strict=True):
            torch.testing.assert_close(gradient, reference.to(dtype))
    assert count > 0


@each_way
def test_errors_are_pytorchs(name, way) -> None:
    function, context = function_of(name, way)
    info = OPERATORS[name]
    if info.error_inputs_func is None:
        info = OPERATORS["native_layer_norm"]  # both make the same checks
    count = 0
    for error in info.error_inputs("cpu"):
        count += 1
        sample = error.sample_input
        with context(), pytest.raises(error.error_type, match=re.escape(error.error_regex)):
            function(sample.input, *sample.args, **sample.kwargs)
    assert count > 0


@each_way
def test_samples_pass_gradcheck(name, way) -> None:
    function, context = function_of(name, way)
    info = OPERATORS[name]
    forward_mode = info.supports_forward_ad
    for sample in info.sample_inputs("cpu", torch.float64, requires_grad=True):
        tensors, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        at = [
            index
            for index, each in enumerate(tensors)
            if isinstance(each, torch.Tensor) and each.requires_grad
        ]

        def call(*changed, at=at, tensors=tensors, spec=spec):
            given = list(tensors)
            for index, each in zip(at, changed, strict=True):
                given[index] = each
            x, args, kwargs = tree_unflatten(given, spec)
            return first(function(x, *args, **kwargs))

        inputs = [tensors[index] for index in at]
        with context():
            assert gradcheck(call, inputs, check_forward_ad=forward_mode, fast_mode=True)
            # PyTorch's own derivative is wrong, with any kernel, for a weight without a bias.
            if not (name == "native_layer_norm" and len(inputs) == 2):
                assert gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("way", ["ours", "accelerated"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_modules_do_what_pytorchs_do(name, dtype, training, way) -> None:
    (info,) = [info for info in modules.module_db if info.name == name]
    inputs = info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=training)
    count = 0
    for given in inputs:
        count += 1
        constructor, forward = given.constructor_input, given.forward_input
        theirs = info.module_cls(*constructor.args, **constructor.kwargs).to(dtype).train(training)
        cls = CLASSES[name] if way == "ours" else info.module_cls
        mine = cls(*constructor.args, **constructor.kwargs).to(dtype).train(training)
        mine.load_state_dict(theirs.state_dict())
        assert isinstance(mine, info.module_cls)
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        (x,) = (each.detach().double().requires_grad_() for each in forward.args)
        in_float64 = copy.deepcopy(theirs).double()
        if getattr(in_float64, "eps", 0) is None:  # None means another eps in float64
            in_float64.eps = torch.finfo(dtype).eps
        expected = in_float64(x, **forward.kwargs)
        with ours.accelerate() if way == "accelerated" else nullcontext():
            got = mine(*forward.args, **forward.kwargs)
            dy = torch.randn_like(got)
            of_mine = torch.autograd.grad(got, [forward.args[0], *mine.parameters()], dy)
        of_theirs = torch.autograd.grad(expected, [x, *in_float64.parameters()], dy.double())
        torch.testing.assert_close(got, expected.to(dtype))
        for gradient, reference in zip(of_mine, of_theirs, strict=True):
            torch.testing.assert_close(gradient, reference.to(dtype))
        if given.reference_fn is not None and (name, dtype) != ("nn.RMSNorm", torch.float64):
            # There, the reference's eps for None is not the one of PyTorch's own module.
            torch.testing.assert_close(got, given.reference_fn(mine, *forward.args))
    assert count > 0
