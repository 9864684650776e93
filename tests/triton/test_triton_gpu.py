"""What only a GPU can show: streams, graphs, the compiler, addresses, memory, its rounding."""

import os
import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import torch.nn.functional as F  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm import reference, spec  # noqa: E402


def a_layer(cols=769, dtype=torch.bfloat16):
    layer = ours.LayerNorm(cols, device="cuda", dtype=dtype)
    with torch.no_grad():
        for each in layer.parameters():
            each.normal_()
    return layer


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))]


@pytest.mark.parametrize("cols", [64, 769, 4096, 20000])
def test_compiled_gives_the_bits_of_eager(cols) -> None:
    layer = a_layer(cols)
    x = torch.randn(37, cols, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True)
    for got, expected in zip(gradients(compiled, x), gradients(layer, x), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("cols", [769, 4096, 20000])
def test_with_a_residual_compiled_gives_the_bits_of_eager_and_of_an_addition(cols) -> None:
    layer = a_layer(cols)
    leaves = torch.randn(2, 37, cols, device="cuda", dtype=torch.bfloat16).requires_grad_().unbind()
    dy, dtotal = torch.randn(2, 37, cols, device="cuda", dtype=torch.bfloat16)

    def norm(x, residual):
        return ours.layer_norm(x, (cols,), layer.weight, layer.bias, residual=residual)

    def results(function):
        y, total = function(*leaves)
        given = (*leaves, *layer.parameters())
        return [y, total, *torch.autograd.grad((y, total), given, (dy, dtotal))]

    eager = results(norm)
    for got, expected in zip(results(torch.compile(norm, fullgraph=True)), eager, strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(eager[1], leaves[0] + leaves[1])
    assert torch.equal(eager[0], layer(eager[1]))


@pytest.mark.parametrize("norm_before_gate", [True, False])
@pytest.mark.parametrize("cols", [769, 4096, 20000])
def test_with_a_gate_compiled_gives_the_bits_of_eager(cols, norm_before_gate) -> None:
    layer = a_layer(cols)
    leaves = torch.randn(2, 37, cols, device="cuda", dtype=torch.bfloat16).requires_grad_().unbind()
    dy = torch.randn(37, cols, device="cuda", dtype=torch.bfloat16)

    def norm(x, gate):
        options = {"gate": gate, "norm_before_gate": norm_before_gate}
        return ours.layer_norm(x, (cols,), layer.weight, layer.bias, **options)

    def results(function):
        y = function(*leaves)
        return [y, *torch.autograd.grad(y, (*leaves, *layer.parameters()), dy)]

    compiled = results(torch.compile(norm, fullgraph=True))
    for got, expected in zip(compiled, results(norm), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("scale", [None, 0.02])
@pytest.mark.parametrize("q_type", spec.QUANTIZED_TYPES)
@pytest.mark.parametrize("cols", [769, 4096, 20000])
def test_in_8_bits_compiled_and_eager_give_the_bits_of_the_reference(cols, q_type, scale) -> None:
    layer = a_layer(cols)
    x = torch.randn(37, cols, device="cuda", dtype=torch.bfloat16)

    def norm(x):
        options = {"dtype": q_type, "scale": scale}
        result = ours.quantized_layer_norm(x, (cols,), layer.weight, layer.bias, **options)
        return result if scale is None else (result,)

    q, *scales = norm(x)
    y = layer(x).detach().float().cpu().numpy()
    expected, expected_scales = reference.quantize(y, q_type, scale)
    assert torch.equal(q.double().cpu(), torch.from_numpy(expected))
    for each in scales:
        assert torch.equal(each.double().cpu(), torch.from_numpy(expected_scales))
    compiled = torch.compile(norm, fullgraph=True)(x)
    for got, right in zip(compiled, (q, *scales), strict=True):
        assert torch.equal(got.view(torch.uint8), right.view(torch.uint8))


def test_a_cuda_graph_replays() -> None:
    layer = a_layer()
    x = torch.randn(37, 769, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.normal_()
        graph.replay()
        assert torch.equal(y, layer(x))


@pytest.mark.parametrize("cols", [769, 6000, 20000])
def test_a_cuda_graph_of_forward_and_backward_replays(cols) -> None:
    layer = a_layer(cols)
    x = torch.randn(37, cols, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(layer, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = gradients(layer, x)
    x.normal_()
    graph.replay()
    for got, expected in zip(results, gradients(layer, x), strict=True):
        assert torch.equal(got, expected)


def test_a_first_call_inside_of_a_cuda_graph_says_what_to_do() -> None:
    x = torch.randn(3, 771, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x += 1  # PyTorch warns of an empty graph
        with pytest.raises(RuntimeError, match="make the call once before"):
            ours.layer_norm(x, (771,), eps=0.25)  # no other test compiles this kernel
    torch.cuda.synchronize()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_the_device_of_x_is_used_whatever_the_current_one_is() -> None:
    layer = a_layer()
    x = torch.randn(37, 769, device="cuda", dtype=torch.bfloat16)
    there = [each.cpu() for each in gradients(layer.to("cuda:1"), x.to("cuda:1"))]
    for got, expected in zip(there, gradients(layer.to("cuda:0"), x), strict=True):
        assert torch.equal(got, expected.cpu())


def test_a_tensor_on_another_device_is_an_error() -> None:
    x = torch.randn(3, 16, device="cuda")
    with pytest.raises(RuntimeError, match="expected one device"):
        ours.layer_norm(x, (16,), torch.ones(16), torch.ones(16))
    with pytest.raises(RuntimeError, match="expected one device"):
        ours.layer_norm(x.cpu(), (16,), torch.ones(16, device="cuda"))


@pytest.mark.parametrize("cols", [64, 6000, 20000])
@pytest.mark.parametrize("offset", [1, 4])
def test_a_misaligned_slice_has_the_bits_of_an_aligned_one(cols, offset) -> None:
    layer = a_layer(cols)
    memory = torch.randn(5 * cols + offset, device="cuda", dtype=torch.bfloat16)
    x = memory[offset:].view(5, cols)
    assert x.data_ptr() % 16
    for got, expected in zip(gradients(layer, x), gradients(layer, x.clone()), strict=True):
        assert torch.equal(got, expected)


def test_another_stream_is_used() -> None:
    layer = a_layer()
    x = torch.randn(4096, 769, device="cuda", dtype=torch.bfloat16)
    expected = layer(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        later = x + 0
        got = layer(later)
    torch.cuda.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accelerate_serves_pytorchs_own_layer_norm(dtype) -> None:
    x = torch.randn(37, 769, device="cuda", dtype=dtype) + 1000
    expected = ours.layer_norm(x, (769,))
    with ours.accelerate():
        assert torch.equal(F.layer_norm(x, (769,)), expected)


def test_autocast_gives_pytorchs_type() -> None:
    x = torch.randn(3, 16, device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda"):
        assert ours.layer_norm(x, (16,)).dtype == F.layer_norm(x, (16,)).dtype
        assert ours.rms_norm(x, (16,)).dtype == F.rms_norm(x, (16,)).dtype


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2**20 + 1, 4096), (2, 2**31 + 16, 1), (65537, 3, 5)])
def test_more_than_2_to_the_32_elements_give_the_right_answer(shape) -> None:
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    y = ours.layer_norm(x, shape[-1:])
    for place in (0, -1, len(x) // 2):
        row = x[place].reshape(-1, shape[-1])[-1:]
        assert torch.equal(y[place].reshape(-1, shape[-1])[-1:], ours.layer_norm(row, shape[-1:]))


@pytest.mark.slow
@pytest.mark.parametrize("axis", [1, -1])
def test_a_backward_of_more_than_2_to_the_32_elements_gives_the_right_dx(axis) -> None:
    shape = (2**20 + 1, 64, 64)
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def run(place):
        part = x[place].detach().requires_grad_()
        y = ours.layer_norm(part, (64,), weight, axis=axis)
        return torch.autograd.grad(y, (part, weight), dy[place])

    dx, dweight = run(slice(None))
    for place in (slice(0, 1), slice(2**20, 2**20 + 1)):
        assert torch.equal(dx[place], run(place)[0])
    assert torch.isfinite(dweight).all()


def test_the_sanitizer_finds_nothing() -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("no compute-sanitizer here")
    code = "import torch, layernorm.torch as ours\n"
    code += "for shape in ((5, 769), (3, 20001), (7, 64), (2, 48, 5), (2, 3001, 5)):\n"
    code += "    x = torch.randn(shape, device='cuda', requires_grad=True)\n"
    code += "    w = torch.ones(shape[1], device='cuda', requires_grad=True)\n"
    code += "    ours.layer_norm(x, shape[1:2], w, w, axis=1).sum().backward()\n"
    code += "    sum(ours.layer_norm(x, shape[1:2], w, w, residual=x, axis=1)).sum().backward()\n"
    code += "    for first in (True, False):\n"
    code += "        options = {'axis': 1, 'gate': x, 'norm_before_gate': first}\n"
    code += "        ours.layer_norm(x, shape[1:2], w, w, **options).sum().backward()\n"
    code += "    ours.quantized_layer_norm(x, shape[1:2], w, w, axis=1)\n"
    command = [tool, "--error-exitcode=9", sys.executable, "-c", code]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "Device not supported" in done.stdout:  # under some virtual machines
        pytest.skip("compute-sanitizer does not support this device")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
