"""torch.compile, torch.export, ONNX, tracing, and tensors without data."""

import copy
import io

import pytest

torch = pytest.importorskip("torch")

import torch._dynamo as dynamo  # noqa: E402
from torch._functorch import config as functorch_config  # noqa: E402
from torch._inductor import config as inductor_config  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.library import opcheck  # noqa: E402

import layernorm.torch as ours  # noqa: E402


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    # With CI set, the compiler is stricter, but a graph from its cache is not compiled again.
    monkeypatch.setenv("CI", "true")
    dynamo.reset()
    dynamo.utils.counters.clear()
    with (
        inductor_config.patch(fx_graph_cache=False),
        functorch_config.patch(enable_autograd_cache=False),
    ):
        yield
    dynamo.reset()


class Block(torch.nn.Module):
    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.norm = norm
        with torch.no_grad():
            for each in norm.parameters():
                each.copy_(torch.randn_like(each))

    def forward(self, x):
        return self.norm(x) * 2


CHANNELS_FIRST = "channels_first"  # as rows, PyTorch's layout for them, it has other bits

NORMS = {
    "layer_norm": lambda: ours.LayerNorm(13),
    "without_parameters": lambda: ours.LayerNorm(13, elementwise_affine=False),
    CHANNELS_FIRST: lambda: ours.LayerNorm(6, axis=1),
    "rms_norm": lambda: ours.RMSNorm(13),
    "zero_centered": lambda: ours.RMSNorm(13, zero_centered_weight=True),
}

each_norm = pytest.mark.parametrize("norm", NORMS)
# The compiler takes seconds for each: not every type for every norm.
NORMS_AND_TYPES = [
    *(("layer_norm", torch.float32), ("layer_norm", torch.bfloat16)),
    *(("rms_norm", torch.bfloat16), ("zero_centered", torch.float32)),
    *(("without_parameters", torch.bfloat16), ("channels_first", torch.float32)),
]


def gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    inputs = [x, *model.parameters()]
    return [y, *torch.autograd.grad(y.sin().sum(), inputs)]


@pytest.mark.parametrize(("norm", "dtype"), NORMS_AND_TYPES, ids=str)
def test_compiled_gives_the_bits_of_eager(norm, dtype) -> None:
    model = Block(NORMS[norm]()).to(dtype)
    x = torch.randn(5, 6, 13).to(dtype)
    compiled = torch.compile(model, fullgraph=True)
    for got, expected in zip(gradients(compiled, x), gradients(model, x), strict=True):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def test_fifty_batch_sizes_take_two_graphs() -> None:
    model = Block(ours.LayerNorm(13))
    compiled = torch.compile(model, fullgraph=True)
    for rows in range(2, 52):
        x = torch.randn(rows, 13)
        assert torch.equal(compiled(x), model(x))
    assert dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # one, and one for any size


def test_dynamic_shapes_take_one_graph() -> None:
    model = Block(ours.LayerNorm(13))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for rows in range(2, 12):
        compiled(torch.randn(rows, rows + 1, 13))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_channels_last_is_kept_by_the_compiler() -> None:
    model = Block(ours.LayerNorm(6, axis=1))
    x = torch.randn(2, 6, 4, 5).to(memory_format=torch.channels_last)
    got = torch.compile(model, fullgraph=True)(x)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, model(x))


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
def test_transforms_inside_a_compiled_graph(transform) -> None:
    x = torch.randn(3, 13)

    def call(x):
        if transform == "vmap":
            return torch.func.vmap(lambda row: ours.layer_norm(row, (13,)))(x)
        if transform == "grad":
            return torch.func.grad(lambda x: ours.layer_norm(x, (13,)).sin().sum())(x)
        return torch.func.jvp(lambda x: ours.layer_norm(x, (13,)), (x,), (x,))[1]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")  # traced, not made C++
    torch.testing.assert_close(compiled(x), call(x))


@pytest.mark.parametrize(
    ("norm", "strict"), [*((norm, False) for norm in NORMS), ("layer_norm", True)]
)
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch.export.load of 2.10
def test_exported_has_pytorchs_operators_alone_and_our_bits_when_accelerated(norm, strict) -> None:
    model = Block(NORMS[norm]()).eval()
    x = torch.randn(5, 6, 13)
    sizes = ({0: torch.export.Dim("rows")},)
    exported = torch.export.export(model, (x,), dynamic_shapes=sizes, strict=strict)
    again = io.BytesIO()
    torch.export.save(exported, again)
    again.seek(0)
    longer = torch.randn(9, 6, 13)
    for program in (exported, torch.export.load(again)):
        assert "layernorm" not in program.graph_module.code
        torch.testing.assert_close(program.module()(longer), model(longer))
        with ours.accelerate():
            assert norm == CHANNELS_FIRST or torch.equal(program.module()(longer), model(longer))


def names_of(graph) -> list[str]:
    return [node.op_type for node in graph]


@pytest.mark.parametrize("norm", ["layer_norm", "without_parameters"])
def test_onnx_has_layer_normalization(norm, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Block(NORMS[norm]()).eval()
    x = torch.randn(5, 13)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert "LayerNormalization" in names_of(program.model.graph)
    path = tmp_path / "model.onnx"
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach())


def test_onnx_of_an_exported_program_has_layer_normalization() -> None:
    pytest.importorskip("onnxscript")
    x = torch.randn(5, 13)
    exported = torch.export.export(Block(ours.LayerNorm(13)).eval(), (x,))
    program = torch.onnx.export(exported, (x,), dynamo=True, verbose=False)
    assert "LayerNormalization" in names_of(program.model.graph)


@each_norm
def test_a_trace_has_our_bits_when_accelerated(norm) -> None:
    model = Block(NORMS[norm]())
    traced = torch.jit.trace(model, (torch.randn(5, 6, 13),))
    x = torch.randn(7, 6, 13)
    torch.testing.assert_close(traced(x), model(x))
    with ours.accelerate():
        assert norm == CHANNELS_FIRST or torch.equal(traced(x), model(x))


@each_norm
def test_meta_and_fake_tensors_have_the_shapes_and_strides_of_real_ones(norm) -> None:
    model = NORMS[norm]()
    x = torch.randn(6, 6, 13)
    for each in (x, x.transpose(0, 1), x.transpose(1, 2).contiguous().transpose(1, 2)):
        expected = model(each)
        meta = copy.deepcopy(model).to("meta")(each.to("meta"))
        assert (meta.shape, meta.stride()) == (expected.shape, expected.stride())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = model(mode.from_tensor(each))
        assert (fake.shape, fake.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize(
    ("kind", "axis", "dtype"),
    [
        ("layer_norm", [-1], torch.float32),
        ("layer_norm", [1], torch.bfloat16),
        ("layer_norm", [0, 2], torch.float32),
        ("rms_norm", [-1], torch.bfloat16),
        ("rms_norm", [0, 2], torch.float32),
    ],
    ids=str,
)
def test_every_operator_passes_opcheck(kind, axis, dtype) -> None:
    x = torch.randn(3, 4, 5).to(dtype)
    shape = [x.shape[each] for each in axis]
    parameters = [torch.randn(shape).to(dtype) for _ in range(2 if kind == "layer_norm" else 1)]
    forward = getattr(torch.ops.layernorm, kind).default
    backward = getattr(torch.ops.layernorm, f"{kind}_backward").default
    inputs = [each.requires_grad_() for each in (x, *parameters)]
    opcheck(forward, (*inputs, axis, 1e-5, False))
    statistics = [each.detach() for each in forward(*inputs, axis, 1e-5, False)[1:]]
    dy = torch.randn_like(x).requires_grad_()
    need = [True] * len(inputs)
    arguments = (dy, inputs[0], *statistics, *inputs[1:], axis, 1e-5, False, need)
    opcheck(backward, arguments)
