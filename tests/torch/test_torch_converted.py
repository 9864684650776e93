"""Converted models under the tools that people run on models: each works as before the swap."""

import copy
import functools
import io
import pickle

import foreign_norms as foreign
import pytest

torch = pytest.importorskip("torch")

import torch._dynamo as dynamo  # noqa: E402
from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402

COLS = 8

one_thread = pytest.fixture(foreign.one_thread, autouse=True)

KINDS = {
    "layer_norm": lambda: nn.LayerNorm(COLS),
    "rms_norm": lambda: nn.RMSNorm(COLS),
    "llama": lambda: foreign.LlamaNorm(COLS),
    "olmo": lambda: foreign.OlmoNorm(COLS),
    "l2": foreign.L2Norm,
}

each_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind):
    """A small model, and a converted copy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COLS, COLS), KINDS[kind](), nn.Linear(COLS, COLS))
    converted = copy.deepcopy(model)
    assert ours.convert(converted).swapped
    return model, converted


def x():
    return torch.randn(4, COLS, generator=torch.Generator().manual_seed(1))


def is_converted(module) -> bool:
    return "layernorm" in repr(module)


@each_kind
def test_models_are_pickled_and_copied_whole(kind) -> None:
    _, model = pair(kind)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    copies = [
        torch.load(saved, weights_only=False),
        *(pickle.loads(pickle.dumps(model, protocol)) for protocol in range(6)),
        copy.deepcopy(model),
        copy.copy(model),
    ]
    for each in copies:
        assert type(each[1]) is type(model[1])
        assert torch.equal(each(x()), model(x()))
    assert copy.copy(model[1]).__dict__.keys() == vars(model[1]).keys()
    ours.convert(copies[0], undo=True)
    assert type(copies[0][1]) is type(KINDS[kind]())
    assert is_converted(model[1])


@pytest.mark.parametrize("reduce", ["by a function", "by another class", "by a partial"])
def test_a_class_that_says_how_it_is_pickled(reduce) -> None:
    module = foreign.ReducingNorm(COLS)
    module.reduce = reduce
    with torch.no_grad():
        module.weight.normal_()
    ours.convert(module)
    for each in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert type(each) is type(module)
        assert torch.equal(each(x()), module(x()))


@each_kind
def test_saved_states_fit_both_ways(kind) -> None:
    model, converted = pair(kind)
    assert model.state_dict().keys() == converted.state_dict().keys()
    model.load_state_dict(converted.state_dict())
    converted.load_state_dict(model.state_dict())


@each_kind
def test_a_model_compiles_as_one_graph(kind) -> None:
    model, converted = pair(kind)
    dynamo.reset()
    targets = []

    def backend(graph, given):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return dynamo.lookup_backend("aot_eager")(graph, given)

    compiled = torch.compile(converted, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x()), model(x()))
    compiled(x()).sum().backward()
    model(x()).sum().backward()
    for mine, theirs in zip(converted.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert sum(each.startswith("layernorm.") for each in targets) == 1, targets


@each_kind
def test_a_model_that_is_already_compiled_runs_ours_afterwards(kind) -> None:
    dynamo.reset()
    model = nn.Sequential(KINDS[kind]())
    compiled = torch.compile(model, backend="eager")
    before = compiled(x())
    assert list(ours.convert(compiled).swapped) == ["_orig_mod.0"]
    torch.testing.assert_close(compiled(x()), before)
    torch.testing.assert_close(compiled(x() * 1e30), compiled(x()), rtol=1e-3, atol=1e-3)
    ours.convert(compiled, undo=True)
    assert torch.equal(compiled(x()), before)


@each_kind
def test_models_are_traced_exported_and_scripted(kind) -> None:
    model, converted = pair(kind)
    expected = model(x())
    traced = torch.fx.symbolic_trace(converted)
    exported = torch.export.export(converted, (x(),)).module()
    loose = torch.export.export(converted, (x(),), strict=False).module()
    for each in (traced, exported, loose, torch.jit.trace(converted, x()), converted):
        torch.testing.assert_close(each(x()), expected)
    nodes = [each.op for each in traced.graph.nodes]
    assert nodes == [each.op for each in torch.fx.symbolic_trace(model).graph.nodes]
    if kind != "rms_norm":  # which TorchScript refuses, converted or not: its eps may be None
        torch.testing.assert_close(torch.jit.script(converted)(x()), expected)
        assert is_converted(converted[1])
    module = converted[1]
    assert torch.fx.symbolic_trace(module)(x()).shape == x().shape


@each_kind
def test_functions_of_parameters_and_transforms(kind) -> None:
    from torch.func import functional_call, grad, vmap

    model, converted = pair(kind)

    def loss(parameters, module, row):
        return functional_call(module, parameters, (row,)).square().sum()

    def per_sample(module):
        parameters = {name: each.detach() for name, each in module.named_parameters()}
        return vmap(grad(loss), in_dims=(None, None, 0))(parameters, module, x())

    torch.testing.assert_close(per_sample(converted), per_sample(model))


def test_per_sample_gradients_by_expanded_weights() -> None:
    """A tensor subclass that knows PyTorch's layer norm, and not ours."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    model, converted = pair("layer_norm")
    for each in (model, converted):
        call_for_per_sample_grads(each)(x()).sum().backward()
    for mine, theirs in zip(converted.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad_sample, theirs.grad_sample)


@each_kind
def test_hooks_stay(kind) -> None:
    model = nn.Sequential(KINDS[kind]())
    calls = []
    note = lambda *_: calls.append(1)  # noqa: E731
    model[0].register_forward_hook(note)
    model[0].register_forward_pre_hook(note)
    model[0].register_full_backward_hook(note)
    model[0].register_state_dict_pre_hook(note)
    ours.convert(model)
    assert is_converted(model[0])
    model(x().requires_grad_()).sum().backward()
    model.state_dict()
    assert len(calls) == 4


class Offloaded:
    """What accelerate's add_hook_to_module does: the instance gets a forward."""

    def __init__(self, module) -> None:
        self.calls = 0
        module._hf_hook = self
        module._old_forward = module.forward
        module.forward = functools.update_wrapper(
            functools.partial(self.new_forward, module), module._old_forward
        )

    def new_forward(self, module, *args, **kwargs):
        self.calls += 1
        return module._old_forward(*args, **kwargs)


@each_kind
def test_a_forward_that_accelerate_wrapped_is_served_inside_its_hook(kind) -> None:
    module = KINDS[kind]()
    hook = Offloaded(module)
    attributes = dict(vars(module))
    expected = module(x())
    assert ours.convert(module).swapped
    torch.testing.assert_close(module(x()), expected)
    torch.testing.assert_close(module(x() * 1e30), module(x()), rtol=1e-3, atol=1e-3)
    assert hook.calls == 4
    again = copy.deepcopy(module)
    torch.testing.assert_close(again(x()), expected)
    ours.convert(module, undo=True)
    assert vars(module) == attributes
    assert torch.equal(module(x()), expected)


def test_accelerate_s_own_hooks() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    for make in KINDS.values():
        module = make()
        hook = hooks.AlignDevicesHook(execution_device="cpu", offload=True, io_same_device=True)
        expected = module(x())
        hooks.add_hook_to_module(module, hook)
        assert ours.convert(module).swapped
        assert module._hf_hook is hook
        torch.testing.assert_close(module(x()), expected)
        torch.testing.assert_close(module(x() * 1e30), module(x()), rtol=1e-3, atol=1e-3)
        hooks.remove_hook_from_module(module)
        torch.testing.assert_close(module(x()), expected)
        ours.convert(module, undo=True)
        assert torch.equal(module(x()), expected)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm", "llama"])
def test_reparametrized_after_the_swap(kind) -> None:
    model, converted = pair(kind)
    for each in (model, converted):
        nn.utils.parametrize.register_parametrization(each[1], "weight", nn.Tanh())
    torch.testing.assert_close(converted(x()), model(x()))
    assert "changed again" in ours.convert(converted, undo=True).left["1"]
    for each in (model, converted):
        nn.utils.parametrize.remove_parametrizations(each[1], "weight")
    torch.testing.assert_close(converted(x()), model(x()))
    assert ours.convert(converted, undo=True).restored


@pytest.mark.parametrize("kind", ["layer_norm", "llama"])
def test_pruned_before_or_after(kind) -> None:
    from torch.nn.utils import prune

    before, after = KINDS[kind](), KINDS[kind]()
    after.load_state_dict(before.state_dict())
    ours.convert(after)
    for each in (before, after):
        prune.l1_unstructured(each, "weight", 3)
    expected = before(x())
    torch.testing.assert_close(after(x()), expected)
    ours.convert(before)
    torch.testing.assert_close(before(x()), expected)


def test_optimizers_go_on() -> None:
    model, converted = pair("llama")
    states = []
    for each, is_swapped in ((model, False), (copy.deepcopy(model), True)):
        optimizer = torch.optim.Adam(each.parameters())
        for step in range(3):
            if is_swapped and step == 1:
                assert ours.convert(each).swapped
            optimizer.zero_grad()
            each(x()).square().sum().backward()
            optimizer.step()
        states.append([each.detach() for each in each.parameters()])
    torch.testing.assert_close(states[1], states[0])
    assert is_converted(converted[1])


@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.parametrize("make", [foreign.LayerNorm2d, foreign.ChannelsFirstNorm])
def test_legacy_onnx_files_of_channels_first_run(make, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    images = torch.randn(2, COLS, 4, 3)
    module = make(COLS)
    expected = module(images)
    ours.convert(module)
    path = tmp_path / "model.onnx"
    torch.onnx.export(module, (images,), path, dynamo=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm", "llama"])
def test_sharded_before_or_after_the_swap(kind, order) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COLS, COLS), KINDS[kind](), nn.Linear(COLS, COLS))
    sharded = copy.deepcopy(model)
    if order == "after":
        assert ours.convert(sharded).swapped
    fully_shard(sharded[1], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    if order == "before":
        assert list(ours.convert(sharded).swapped) == ["1"]
    for each in (model, sharded):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            each(x()).square().mean().backward()
            optimizer.step()
    for mine, theirs in zip(sharded.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.full_tensor(), theirs)
    torch.testing.assert_close(sharded(x()), model(x()))
    norm = sharded[1]
    torch.testing.assert_close(norm(x() * 1e30), norm(x()), rtol=1e-3, atol=1e-3)
    undone = ours.convert(sharded, undo=True)
    if order == "before":
        assert type(norm).__name__.startswith("FSDP")
        assert list(undone.restored) == ["1"]
        torch.testing.assert_close(sharded(x()), model(x()))
    else:
        assert "by sharding" in undone.left["1"]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", ["layer_norm", "llama"])
def test_distributed_tensors_as_parameters(kind) -> None:
    from torch.distributed.tensor import DTensor, Replicate, distribute_module, init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    model, converted = (distribute_module(each, mesh) for each in pair(kind))
    rows = DTensor.from_local(x(), mesh, [Replicate()])
    torch.testing.assert_close(converted(rows).full_tensor(), model(rows).full_tensor())
