"""convert(): which norms are swapped, and which are left and why."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

import foreign_norms as foreign
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402

COLS = 8
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

one_thread = pytest.fixture(foreign.one_thread, autouse=True)

LAST = (3, 5, COLS)
FIRST = (2, COLS, 4, 3)

SERVED = {
    "layer_norm": (lambda: nn.LayerNorm(COLS), LAST),
    "layer_norm of two axes": (lambda: nn.LayerNorm((5, COLS)), LAST),
    "layer_norm without bias": (lambda: nn.LayerNorm(COLS, bias=False), LAST),
    "layer_norm without weight": (lambda: nn.LayerNorm(COLS, elementwise_affine=False), LAST),
    "rms_norm": (lambda: nn.RMSNorm(COLS), LAST),
    "rms_norm without weight": (lambda: nn.RMSNorm(COLS, elementwise_affine=False), LAST),
    "llama": (lambda: foreign.LlamaNorm(COLS), LAST),
    "gemma": (lambda: foreign.LlamaNorm(COLS, offset=1.0, round_first=False), LAST),
    "nemotron": (lambda: foreign.NemotronNorm(COLS), LAST),
    "a subclass": (lambda: type("Fp32LayerNorm", (nn.LayerNorm,), {})((5, COLS)), LAST),
    "olmo": (lambda: foreign.OlmoNorm(COLS), LAST),
    "l2": (foreign.L2Norm, LAST),
    "falcon mamba": (lambda: foreign.WeightlessNorm(COLS), LAST),
    "scale and shift": (lambda: foreign.ScaleNorm(COLS), LAST),
    "eps in the code": (lambda: foreign.CodeEpsNorm(COLS), LAST),
    "eps in a tensor": (lambda: foreign.TensorEpsNorm(COLS), LAST),
    "channels first": (lambda: foreign.ChannelsFirstNorm(COLS), FIRST),
    "timm's channels first": (lambda: foreign.LayerNorm2d(COLS), FIRST),
    "squeezebert": (lambda: foreign.SqueezeNorm(COLS), FIRST[:3]),
}

each_served = pytest.mark.parametrize("name", SERVED)


def served(name):
    make, shape = SERVED[name]
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn_like(each))
    return module, shape


@cache
def converted(name):
    module, _ = served(name)
    assert ours.convert(module).swapped
    return module


def results(module, x):
    """y, and the gradients of x and the parameters."""
    x = x.clone().requires_grad_()
    y = module(x)
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator).to(y.dtype)
    return y, *torch.autograd.grad(y, [x, *module.parameters()], dy)


def runs_ours(module, shape) -> bool:
    """Tell it by rows whose squares leave the range of float32."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return torch.allclose(module(x * 1e30), module(x), rtol=1e-3, atol=1e-3)


@each_served
def test_a_norm_is_swapped_with_the_same_results_and_back(name) -> None:
    module, shape = served(name)
    model = nn.ModuleDict({"norm": module})
    before, original, attributes = copy.deepcopy(module), type(module), dict(vars(module))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    done = ours.convert(model)
    assert list(done.swapped) == ["norm"], done
    assert model["norm"] is module
    assert isinstance(module, original)
    assert "layernorm" in repr(module)
    assert original.__name__ in repr(module)
    assert vars(module) == attributes
    torch.testing.assert_close(model.state_dict(), state)
    x = torch.randn(shape)
    torch.testing.assert_close(results(module, x), results(before, x))
    assert runs_ours(module, shape)
    assert not runs_ours(before, shape)
    assert not ours.convert(model).swapped
    assert list(ours.convert(model, undo=True).restored) == ["norm"]
    assert type(module) is original
    assert vars(module) == attributes
    assert torch.equal(module(x), before(x))


def errors(got, exact):
    return [
        ((mine.double() - right).abs().max() / right.abs().max()).item()
        for mine, right in zip(got, exact, strict=True)
    ]


@each_served
@pytest.mark.parametrize("autocast", [False, True])
def test_no_pair_of_types_becomes_worse(name, autocast) -> None:
    module, shape = served(name)
    x = torch.randn(shape)
    for x_type, of_parameters in product(FLOATS, FLOATS):
        before, after = (
            copy.deepcopy(each).to(of_parameters) for each in (module, converted(name))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            try:
                theirs = results(before, x.to(x_type))
            except RuntimeError:
                continue  # ours may take it all the same
            mine = results(after, x.to(x_type))
        assert [each.dtype for each in mine] == [each.dtype for each in theirs]
        exact = results(copy.deepcopy(before).double(), x.to(x_type).double())
        rounding = max(torch.finfo(each).eps for each in (x_type, of_parameters, torch.float32))
        for error, allowed in zip(errors(mine, exact), errors(theirs, exact), strict=True):
            assert error <= allowed + 2 * rounding, (x_type, of_parameters)


def test_what_is_not_the_same_is_left_and_the_reason_named() -> None:
    replaced = foreign.LlamaNorm(COLS)
    replaced.forward = lambda x: x
    forward = torch.compile(foreign.NotingNorm.forward)
    contents = {"forward": forward, "__module__": foreign.__name__}
    compiled = type("CompiledNorm", (nn.LayerNorm,), contents)
    metered, recording, fallback = (
        foreign.MeteredNorm(COLS),
        foreign.RecordingNorm(COLS),
        foreign.FallbackNorm(COLS),
    )
    expected = {
        foreign.ResidualNorm(COLS): r"*residual",
        foreign.LlamaNorm(COLS, eps_outside=True): "neither layer norm nor RMS norm",
        foreign.LlamaNorm(COLS, offset=0.5): "neither layer norm nor RMS norm",
        foreign.HeadsNorm(COLS): "weight of shape (4, 8)",
        foreign.DetachedNorm(COLS): "other gradients",
        foreign.NoisyNorm(COLS): "in training mode",
        foreign.DropoutNorm(COLS): "in training mode",
        foreign.ClampedNorm(COLS): "for x of about 1e+06",
        foreign.ClampedOutputNorm(COLS): "for parameters of about 1e+06",
        foreign.InferenceNorm(COLS): "called again, without gradients",
        foreign.CountingNorm(COLS): "changes its own state",
        foreign.AveragingNorm(COLS): "changes its own state",
        metered: "its attribute meter",
        foreign.LoggingNorm(COLS): "uses SEEN from outside",
        foreign.GloballyCountingNorm(COLS): "uses calls from outside",
        foreign.PrintingNorm(COLS): "prints",
        foreign.ParallelNorm(COLS): "may communicate with other processes",
        foreign.NotingNorm(COLS): "uses SEEN from outside",
        foreign.InnerNotingNorm(COLS): "uses SEEN from outside",
        compiled(COLS): "uses SEEN from outside",
        foreign.RegisteredNorm(COLS): "controls how subclasses are made",
        recording: "its attribute record",
        fallback: "its attribute meter",
        foreign.WithoutNaNNorm(COLS): "for rows of NaN",
        foreign.CheckingNorm(COLS): "FloatingPointError",
        foreign.HookedNorm(COLS): "other gradients",
        foreign.OutputHookedNorm(COLS): "other gradients",
        foreign.GroupedNorm(COLS): "its attribute groups",
        foreign.ManyRowsNorm(COLS): "other results",
        foreign.FinalNorm(COLS): "controls how subclasses are made",
        foreign.LayerNormAct(COLS): "its modules drop, act",
        foreign.RunningNorm(COLS): "depend on gain",
        nn.utils.parametrizations.spectral_norm(nn.LayerNorm((2, COLS))): "parametrize",
        torch.jit.script(foreign.OlmoNorm(COLS)): "TorchScript",
        nn.BatchNorm1d(COLS): "neither layer norm nor RMS norm",
        nn.GroupNorm(2, COLS): "neither layer norm nor RMS norm",
        replaced: "replaced on the instance",
    }
    model = nn.ModuleList(expected).eval()
    classes = [type(each) for each in model]
    done = ours.convert(model)
    assert not done.swapped
    assert [type(each) for each in model] == classes
    for place, words in enumerate(expected.values()):
        assert words in done.left[str(place)], (place, done.left[str(place)])
    assert ours.convert(nn.Sequential(nn.Linear(2, 2))) == type(done)()
    assert metered.meter.count == fallback.meter.count == foreign.calls == 0
    assert recording.seen == foreign.SEEN == []
    assert {"RegisteredNorm": foreign.RegisteredNorm} == foreign.KNOWN


@pytest.mark.parametrize("training", [False, True])
def test_norms_called_with_more_than_x_work_as_before(training) -> None:
    model = nn.ModuleList([foreign.GatedNorm(COLS), foreign.ResidualNorm(COLS)]).train(training)
    x, other = torch.randn(2, 3, COLS), torch.randn(2, 3, COLS)
    expected = [model[0](x), model[0](x, gate=None), model[1](x, other)]
    ours.convert(model)
    assert torch.equal(model[0](x), expected[0])
    assert torch.equal(model[0](x, gate=None), expected[1])
    assert torch.equal(model[1](x, other), expected[2])


def test_a_keyword_goes_by_the_name_that_the_class_gave_it() -> None:
    x = torch.randn(2, COLS)
    for module, name in ((foreign.LlamaNorm(COLS), "hidden_states"), (nn.LayerNorm(COLS), "input")):
        expected = module(x)
        ours.convert(module)
        torch.testing.assert_close(module(**{name: x}), expected)
        with pytest.raises(TypeError):
            module(wrong=x)
        with pytest.raises(TypeError):
            module(x, x)
        with pytest.raises(TypeError):
            module()


def test_rms_norm_of_mixed_types_is_pytorchs() -> None:
    x = torch.randn(3, COLS)
    module = nn.RMSNorm(COLS).bfloat16()
    ours.convert(module)
    assert module(x).dtype == torch.float32
    torch.testing.assert_close(module(x), nn.RMSNorm(COLS)(x))


def test_a_float32_x_with_bfloat16_parameters() -> None:
    module = foreign.LlamaNorm(COLS, round_first=False).bfloat16()
    x = torch.randn(3, COLS)
    expected = module(x)
    ours.convert(module)
    assert torch.equal(module(x), expected)


def test_a_result_of_another_type_than_x_stays() -> None:
    module = foreign.Float32OutputNorm(COLS).eval()
    x = torch.randn(3, COLS).bfloat16()
    expected = module(x)
    ours.convert(module)
    assert module(x).dtype == torch.float32
    assert torch.equal(module(x), expected)
    assert runs_ours(module, LAST)  # of float32, which was its type


def test_attributes_and_other_methods_stay() -> None:
    module = foreign.LlamaNorm(COLS)
    type(module).described = lambda self: self.variance_epsilon
    try:
        ours.convert(module)
        assert module.variance_epsilon == module.described() == 1e-6
    finally:
        del foreign.LlamaNorm.described


def test_eps_is_read_at_each_call() -> None:
    before, after = foreign.LlamaNorm(COLS), foreign.LlamaNorm(COLS)
    after.load_state_dict(before.state_dict())
    ours.convert(after)
    before.variance_epsilon = after.variance_epsilon = 1.0
    x = torch.randn(3, COLS)
    torch.testing.assert_close(after(x), before(x))
    before.variance_epsilon = after.variance_epsilon = torch.tensor(0.5)
    assert torch.equal(after(x), before(x))


def test_what_is_set_after_the_swap_has_its_effect() -> None:
    x = torch.randn(3, COLS)
    y = torch.nn.functional.layer_norm(x, (COLS,))
    edited, listening = foreign.EditedNorm(COLS), foreign.ListeningNorm(COLS)
    assert not ours.convert(nn.ModuleList([edited, listening])).left
    edited.edit = 3.0
    torch.testing.assert_close(edited(x), 3 * y)
    edited.edit = torch.full((COLS,), 2.0)
    torch.testing.assert_close(edited(x), 2 * y)
    del edited.edit
    assert runs_ours(edited, LAST)
    listening.listeners.append(lambda y: -y)
    torch.testing.assert_close(listening(x), -y)
    foreign.ListeningNorm.is_on = False
    try:
        assert listening(x) is x
    finally:
        foreign.ListeningNorm.is_on = True


def test_a_forward_that_its_class_is_given_after_the_swap_runs(monkeypatch) -> None:
    module = foreign.LlamaNorm(COLS)
    ours.convert(module)
    monkeypatch.setattr(foreign.LlamaNorm, "forward", lambda self, x: 2 * x)
    x = torch.randn(3, COLS)
    assert torch.equal(module(x), 2 * x)


@pytest.mark.usefixtures("process_group")
def test_a_trial_communicates_with_nobody(monkeypatch) -> None:
    monkeypatch.setattr(
        torch.distributed, "get_world_size", lambda: pytest.fail("has communicated")
    )
    done = ours.convert(foreign.OperationParallelNorm(COLS))
    assert "which communicates with other processes" in done.left[""]


def test_names_outside_are_not_those_of_attributes() -> None:
    assert ours.convert(foreign.NamesakeNorm(COLS)).swapped


OTHER_OPTIONS = {
    "scaled": True,
    "mode": foreign.Mode.DOUBLE,
    "number": 2.0,
    "names": ("b", 1),
    "dtype": torch.float16,
    "place": torch.device("meta"),
    "sizes": [7],
    "kind": nn.RMSNorm,
    "function": torch.sqrt,
    "bias": nn.Parameter(torch.zeros(COLS)),
    "extra": None,
    "adapter": nn.Identity(),
    "factor": lambda: 2,
}


@pytest.mark.parametrize("compiled", [False, True])
def test_an_option_that_is_set_after_the_swap_has_its_effect(compiled) -> None:
    module = foreign.OptionsNorm(COLS)
    if not compiled:  # the compiler makes a tensor of NumPy's numbers
        module.number = np.float32(1)
    assert ours.convert(module).swapped
    torch._dynamo.reset()
    call = torch.compile(module, fullgraph=True, backend="eager") if compiled else module
    assert runs_ours(call, LAST)
    x = torch.randn(3, COLS)
    y = call(x)
    with torch._dynamo.config.patch(recompile_limit=2 * len(OTHER_OPTIONS)):
        for name, value in OTHER_OPTIONS.items():
            own = vars(module) | module._parameters
            setattr(module, name, value)
            torch.testing.assert_close(call(x), 2 * y, msg=name)
            if name in own:
                setattr(module, name, own[name])
            else:
                delattr(module, name)
    assert torch.equal(call(x), y)


def test_a_class_that_has_another_forward_is_converted_again(monkeypatch) -> None:
    first, second = foreign.LlamaNorm(COLS), foreign.LlamaNorm(COLS)
    ours.convert(first)
    original = foreign.LlamaNorm.forward
    monkeypatch.setattr(foreign.LlamaNorm, "forward", lambda self, x: original(self, x))
    assert ours.convert(second).swapped
    assert runs_ours(second, LAST)


def test_a_forward_that_pytorchs_class_was_given_before_the_swap_runs(monkeypatch) -> None:
    first, second = nn.LayerNorm(COLS), nn.LayerNorm(COLS)
    ours.convert(first)
    monkeypatch.setattr(nn.LayerNorm, "forward", lambda self, input: 2 * input)
    ours.convert(second)
    x = torch.randn(3, COLS)
    assert torch.equal(second(x), 2 * x)
    assert torch.equal(first(x), 2 * x)


def test_an_x_of_as_many_rows_as_its_values_say() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = foreign.LlamaNorm(COLS)

        def forward(self, x):
            return self.norm(x[x[:, 0] > 0])

    model, x = Model(), torch.randn(9, COLS)
    expected = model(x)
    ours.convert(model)
    exported = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), expected)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)


def test_a_norm_that_makes_x_contiguous_is_served_in_every_layout() -> None:
    module = foreign.ContiguousNorm(COLS)
    ours.convert(module)
    for x in (torch.randn(3, 5, COLS).transpose(0, 1), torch.randn(2, 3, COLS, 5).mT):
        y = module(x * 1e30)
        assert y.is_contiguous()
        torch.testing.assert_close(y, module(x), rtol=1e-3, atol=1e-3)


def test_an_empty_x_is_the_original_s() -> None:
    module = foreign.NonemptyNorm(COLS)
    assert ours.convert(module).swapped
    with pytest.raises(ValueError, match="empty"):
        module(torch.empty(0, COLS))


def test_names_of_ours_may_be_the_model_s_own() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.axis = nn.LayerNorm(COLS), 1
            self.norm.axis = 1

        def _layernorm(self, x):
            return self.norm(x)

    block, x = Block(), torch.randn(3, COLS, COLS)
    expected = block._layernorm(x)
    assert not ours.convert(block, undo=True).restored
    ours.convert(block)
    torch.testing.assert_close(block._layernorm(x), expected)
    assert list(ours.convert(block, undo=True).restored) == ["norm"]


def test_an_attribute_that_is_not_read_is_not_eps() -> None:
    module = foreign.CodeEpsNorm(COLS)
    ours.convert(module)
    x = torch.randn(3, COLS)
    expected = module(x)
    module.variance_epsilon = 1.0
    assert torch.equal(module(x), expected)


def test_the_memory_format_of_y_is_the_original_s() -> None:
    images = torch.randn(2, COLS, 4, 3)
    rows = torch.randn(3, 5, COLS)
    layouts = {
        FIRST: [images, images.to(memory_format=torch.channels_last), images.transpose(2, 3)],
        FIRST[:3]: [images[..., 0], images[:, :, :, 0].contiguous()],
        LAST: [
            rows,
            rows.transpose(0, 1),
            torch.randn(3, 7, COLS)[:, :5],
            rows[:1].expand(4, -1, -1),
        ],
    }
    for name in SERVED:
        before, shape = served(name)
        after = converted(name)
        for x in layouts[shape]:
            if "two axes" in name or name == "a subclass":
                x = torch.randn(3, 7, COLS)[:, :5]
            y, expected = after(x), before(x)
            torch.testing.assert_close(y, expected)
            assert y.stride() == expected.stride(), name


def test_threads_convert_at_the_same_time() -> None:
    torch.set_num_threads(2)
    models = [nn.ModuleList([foreign.LlamaNorm(COLS), nn.LayerNorm(COLS)]) for _ in range(4)]
    with ThreadPoolExecutor(4) as executor:
        assert all(len(each.swapped) == 2 for each in executor.map(ours.convert, models))
    assert torch.get_num_threads() == 2


def test_convert_leaves_no_trace() -> None:
    model = nn.ModuleList([foreign.NoisyNorm(COLS), foreign.LlamaNorm(COLS), nn.LayerNorm(COLS)])
    model.train()
    torch.set_num_threads(2)
    state = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    ours.convert(model)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), torch.get_num_threads()) == state[1:]
    assert all(each.training for each in model)
    assert all(each.grad is None for each in model.parameters())


# A formula, a call of PyTorch's function, tensors made in the forward, a moved axis, no parameters.
OF_A_KIND = ("llama", "a subclass", "scale and shift", "eps in a tensor", "channels first", "l2")


@pytest.mark.parametrize(
    "setting",
    ["default type", "device", "no_grad", "inference_mode", "autocast", "fake", "function mode"],
)
def test_what_the_caller_has_set_does_not_change_the_outcome(setting) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.overrides import BaseTorchFunctionMode

    model = nn.ModuleDict({name: served(name)[0] for name in OF_A_KIND})
    model["adaptive"] = foreign.AdaptiveNorm(COLS, lambda norm, x, a, b: norm(x) * a + b)
    contexts = {
        "device": lambda: torch.device("meta"),
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "fake": FakeTensorMode,
        "function mode": BaseTorchFunctionMode,
    }
    if setting == "default type":
        torch.set_default_dtype(torch.bfloat16)
        try:
            done = ours.convert(model)
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        with contexts[setting]():
            done = ours.convert(model)
    assert list(done.swapped) == [*OF_A_KIND, "adaptive", "adaptive.norm"]
    for name in OF_A_KIND:
        assert runs_ours(model[name], SERVED[name][1])


def test_norms_without_values_are_swapped() -> None:
    """Offloaded parameters are on the device meta between calls."""
    model = nn.ModuleList([served(name)[0] for name in OF_A_KIND])
    assert not ours.convert(model.to("meta")).left


def test_shared_norms_stay_shared_and_a_model_may_be_a_norm() -> None:
    shared = foreign.LlamaNorm(COLS)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    ours.convert(model)
    assert model["a"] is model["b"][0] is shared
    for norm in (nn.LayerNorm(COLS), foreign.LlamaNorm(COLS)):
        assert "the model itself" in str(ours.convert(norm))
        assert runs_ours(norm, LAST)


def test_a_dry_run_changes_nothing() -> None:
    model = nn.Sequential(nn.LayerNorm(COLS), foreign.LlamaNorm(COLS), nn.BatchNorm1d(COLS))
    classes = [type(each) for each in model]
    planned = ours.convert(model, dry_run=True)
    assert [type(each) for each in model] == classes
    assert planned == ours.convert(model)
    converted = [type(each) for each in model]
    assert planned.swapped == ours.convert(model, undo=True, dry_run=True).restored
    assert [type(each) for each in model] == converted


def test_norms_of_ours_are_neither_swapped_nor_restored() -> None:
    model = nn.Sequential(ours.LayerNorm(COLS), nn.LayerNorm(COLS))
    assert list(ours.convert(model).swapped) == ["1"]
    assert isinstance(model[1], ours.LayerNorm)
    assert list(ours.convert(model, undo=True).restored) == ["1"]
    assert [type(each) for each in model] == [ours.LayerNorm, nn.LayerNorm]


def test_what_is_not_a_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        ours.convert([1])


def test_the_original_forward_takes_what_no_trial_has_covered() -> None:
    module = foreign.LlamaNorm(COLS)
    integers = torch.arange(3 * COLS).view(3, COLS)
    complex_x = torch.randn(3, COLS, dtype=torch.complex64)
    other = foreign.LlamaNorm(1)  # whose weight is broadcast
    rank_six = torch.randn(1, 1, 1, 1, 2, COLS)
    expected = module(integers), module(complex_x.real.T.T), other(rank_six), module(rank_six)
    done = ours.convert(nn.ModuleList([module, other]))
    assert "one element" in done.left["1"]
    assert torch.equal(module(integers), expected[0])
    torch.testing.assert_close(module(complex_x.real.T.T), expected[1])
    assert torch.equal(other(rank_six), expected[2])
    assert torch.equal(module(rank_six), expected[3])


@pytest.mark.parametrize("make", [nn.LayerNorm, foreign.LlamaNorm, foreign.NemotronNorm])
def test_x_of_one_axis_to_five(make) -> None:
    module = make(COLS)
    ours.convert(module)
    for rank in range(1, 6):
        assert runs_ours(module, (2, 3, 2, 3, COLS)[-rank:])


def test_an_x_that_the_weight_is_broadcast_to_is_not_ours() -> None:
    module = foreign.LlamaNorm(COLS)
    x = torch.randn(3, 1)
    expected = module(x)
    ours.convert(module)
    assert torch.equal(module(x), expected)


def test_an_eps_of_none_and_one_that_cannot_be_set() -> None:
    class Derived(nn.RMSNorm):
        pass

    class FixedNorm(foreign.LlamaNorm):
        variance_epsilon = property(lambda self: 1e-6, lambda self, value: None)

    model = nn.Sequential(Derived(COLS), FixedNorm(COLS))
    x = torch.randn(3, COLS)
    expected = model(x)
    assert list(ours.convert(model).swapped) == ["0", "1"]
    torch.testing.assert_close(model(x), expected)
    assert runs_ours(model[0], LAST)
    assert runs_ours(model[1], LAST)


def test_a_compiled_forward_is_not_compiled_for_each_trial() -> None:
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    class CompiledNorm(foreign.LlamaNorm):
        forward = torch.compile(foreign.LlamaNorm.forward, backend=backend)

    assert ours.convert(CompiledNorm(COLS)).swapped
    assert not compiled
