"""convert(): adaptive norms, of our own making and of diffusers."""

import copy
import pickle
from functools import cache
from itertools import product

import foreign_norms as foreign
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm.torch.conversion import modulated  # noqa: E402

COLS = 8

one_thread = pytest.fixture(foreign.one_thread, autouse=True)


def adaptive(function, norm=None):
    return foreign.AdaptiveNorm(COLS, function, norm)


def usual(norm, x, scale, shift):
    return norm(x) * (1 + scale[:, None]) + shift[:, None]


def of_two_results(norm, x, scale, shift):
    y = norm(x)
    return y * (1 + scale[:, None]) + shift[:, None], y * (1 + shift[:, None])


# How to make the module, and the number of calls that it makes of our functions.
OWN = {
    "usual": (lambda: adaptive(usual), 1),
    "other order": (lambda: adaptive(lambda n, x, a, b: b[:, None] + a[:, None] * n(x)), 1),
    "no shift": (lambda: adaptive(lambda n, x, a, b: n(x) * (1 + a[:, None])), 1),
    "one vector": (lambda: adaptive(lambda n, x, a, b: n(x) * (1 + a) + b), 1),
    "each token": (lambda: adaptive(lambda n, x, a, b: n(x) * (a[:, None] * x) + b[:, None]), 1),
    "two results": (lambda: adaptive(of_two_results), 2),
    "shifted twice": (lambda: adaptive(lambda *given: usual(*given) + given[3][:, None]), 1),
    "float32 inside": (lambda: adaptive(lambda n, x, a, b: usual(n, x.float(), a, b).to(x)), 1),
    "affine": (lambda: adaptive(usual, nn.LayerNorm(COLS)), 1),
    "no bias": (lambda: adaptive(usual, nn.LayerNorm(COLS, bias=False)), 1),
    "1 + weight": (lambda: adaptive(usual, foreign.NemotronNorm(COLS)), 1),
    "rms_norm": (lambda: adaptive(usual, nn.RMSNorm(COLS)), 1),
    "no sizes": (lambda: adaptive(usual, foreign.L2Norm()), 1),
}

# The names of the arguments, those of the class, and the number of calls.
CONTINUOUS = {"embedding_dim": 8, "conditioning_embedding_dim": 8}
PLAIN = CONTINUOUS | {"elementwise_affine": False}
DIFFUSERS = {
    "AdaLayerNorm": ("x temb", {"embedding_dim": 8, "output_dim": 16, "chunk_dim": 1}, 1),
    "AdaLayerNormZero": ("x emb", {"embedding_dim": 8}, 1),
    "AdaLayerNormZero 2": ("x emb", {"embedding_dim": 8, "norm_type": "fp32_layer_norm"}, 1),
    "AdaLayerNormZeroSingle": ("x emb", {"embedding_dim": 8}, 1),
    "SD35AdaLayerNormZeroX": ("hidden_states emb", {"embedding_dim": 8}, 2),
    "LuminaRMSNormZero": (
        "x emb",
        {"embedding_dim": 8, "norm_eps": 1e-5, "norm_elementwise_affine": True},
        1,
    ),
    "AdaLayerNormContinuous": ("x conditioning_embedding", PLAIN, 1),
    "AdaLayerNormContinuous 2": ("x conditioning_embedding", CONTINUOUS, 1),
    "AdaLayerNormContinuous 3": (
        "x conditioning_embedding",
        CONTINUOUS | {"norm_type": "rms_norm"},
        1,
    ),
    "LuminaLayerNormContinuous": ("x conditioning_embedding", PLAIN | {"out_dim": 4}, 1),
    "CogVideoXLayerNormZero": (
        "hidden_states encoder_hidden_states temb",
        {"conditioning_dim": 8, "embedding_dim": 8},
        2,
    ),
    "CogView3PlusAdaLayerNormZeroTextImage": (
        "x context emb",
        {"embedding_dim": 8, "dim": 8},
        2,
    ),
}


def inputs(name="usual"):
    """The arguments of a forward: the conditioning has a row for each sample."""
    generator = torch.Generator().manual_seed(1)
    names = DIFFUSERS[name][0].split() if name in DIFFUSERS else ("x", "emb")
    of_emb = (COLS,) if name == "one vector" else (2, COLS)
    is_x = ("x", "hidden_states", "encoder_hidden_states", "context")
    return {
        each: torch.randn((2, 5, COLS) if each in is_x else of_emb, generator=generator)
        for each in names
    }


@pytest.fixture
def calls(monkeypatch):
    """A list of the types of x in the calls that normalize and modulate."""
    types = []
    for name in ("layer_norm", "rms_norm"):
        norm = getattr(modulated, name)

        def recording(x, *given, norm=norm):
            types.append(x.dtype)
            return norm(x, *given)

        monkeypatch.setattr(modulated, name, recording)
    return types


def randomized(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn_like(each))
    return module


@cache
def converted(name):
    if name in OWN:
        make, number = OWN[name]
    else:
        library = pytest.importorskip("diffusers.models.normalization")
        _, options, number = DIFFUSERS[name]
        make = lambda: getattr(library, name.split()[0])(**options)  # noqa: E731
    before = randomized(make())
    after = copy.deepcopy(before)
    assert "" in ours.convert(after).swapped
    return before, after, number


def pair(name="usual"):
    """A module with random weights, a converted copy, and the number of calls that that makes."""
    return copy.deepcopy(converted(name))


def results(module, given):
    """What it returns, and the gradients of the arguments and the parameters."""
    given = {name: each.detach().requires_grad_() for name, each in given.items()}
    returned = module(**given)
    values = returned if isinstance(returned, tuple) else (returned,)
    generator = torch.Generator().manual_seed(2)
    terms = [torch.randn(each.shape, generator=generator).to(each) * each for each in values]
    leaves = [*given.values(), *module.parameters()]
    gradients = torch.autograd.grad(sum(each.sum() for each in terms), leaves)
    return [*values, *gradients]


def errors(got, exact):
    return [
        ((mine.double() - right).abs().max() / right.abs().max()).item()
        for mine, right in zip(got, exact, strict=True)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*OWN, *DIFFUSERS])
def test_an_adaptive_norm_is_swapped_with_the_same_results_and_back(name, calls) -> None:
    before, after, number = pair(name)
    given = inputs(name)
    exact = results(copy.deepcopy(before).double(), {k: v.double() for k, v in given.items()})
    for dtype, training in product((torch.float32, torch.bfloat16), (True, False)):
        for each in (before, after):
            each.to(dtype).train(training)
        narrowed = {key: value.to(dtype) for key, value in given.items()}
        del calls[:]
        got, expected = results(after, narrowed), results(before, narrowed)
        assert len(calls) == number
        assert [each.dtype for each in got] == [each.dtype for each in expected]
        if dtype == torch.float32:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
            continue
        rounding = 2 * torch.finfo(dtype).eps
        for error, allowed in zip(errors(got, exact), errors(expected, exact), strict=True):
            assert error <= allowed + rounding
    assert "by layernorm" in repr(after)
    assert "" in ours.convert(after, undo=True).restored
    assert type(after) is type(before)
    assert all(map(torch.equal, results(after, narrowed), expected))
    assert len(calls) == number


OPAQUE = {
    "modulated first": lambda: adaptive(lambda n, x, a, b: n(x * a[:, None] + b[:, None])),
    "subtracted": lambda: adaptive(lambda n, x, a, b: n(x) - b[:, None]),
    "also returned": lambda: adaptive(lambda n, x, a, b: (y := n(x), y * a[:, None])),
    "a number": lambda: adaptive(lambda n, x, a, b: n(x) * 2 + b[:, None]),
    "x changes": lambda: adaptive(lambda n, x, a, b: (n(x), x.add_(1))[0] * a[:, None]),
    "training": lambda: foreign.TrainingAdaptiveNorm(COLS, usual),
    "no gradients": lambda: adaptive(
        lambda n, x, a, b: usual(n, x, a, b) * (1 if torch.is_grad_enabled() else 2)
    ),
    "asks the type": lambda: adaptive(
        lambda n, x, a, b: usual(n, x, a, b) if isinstance(x, torch.Tensor) else x
    ),
    "asks the shape": lambda: adaptive(lambda n, x, a, b: usual(n, x, a, b) if len(x) > 1 else x),
    "a context": lambda: foreign.FullPrecisionAdaptiveNorm(COLS, usual),
    "own parameter": lambda: foreign.OwnAdaptiveNorm(COLS, usual),
    "keeps": lambda: foreign.KeepingAdaptiveNorm(COLS, usual),
    "lists": lambda: foreign.ListingAdaptiveNorm(COLS, usual),
    "norm in axis 1": lambda: adaptive(usual, foreign.ChannelsFirstNorm(COLS)),
    "other norm": lambda: adaptive(usual, nn.Identity()),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_is_no_modulation_keeps_its_forward(name) -> None:
    before = OPAQUE[name]()
    after = copy.deepcopy(before)
    done = ours.convert(after)
    assert "" not in done.swapped
    assert type(after) is type(before)
    assert ("norm" in done.swapped) == (name != "other norm")
    assert ("" in done.left) == (name == "own parameter")
    assert vars(before.linear).keys() == vars(after.linear).keys()
    if name != "norm in axis 1":
        torch.testing.assert_close(after(**inputs()), before(**inputs()))
        assert getattr(before, "calls", [1]) == getattr(after, "calls", [1]) == [1]


def test_what_our_functions_do_not_take_is_composed(calls) -> None:
    before, after, _ = pair()
    x, emb = inputs().values()
    mixed = copy.deepcopy(before).bfloat16(), copy.deepcopy(after).bfloat16()
    del calls[:]
    for (theirs, mine), *given in (
        ((before, after), x[:1], emb),  # the result has more samples than x
        ((before, after), x.bfloat16(), emb),  # and a wider type
        ((before, after), x[:, :, :1], emb),
    ):
        try:
            expected = theirs(*given)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=str(error)[:20]):
                mine(*given)
        else:
            torch.testing.assert_close(mine(*given), expected)
    with torch.inference_mode():
        inferred = emb[:, None].clone()
    modulated.modulated(after.norm, x.clone().requires_grad_(), emb[:, None], inferred)
    assert not calls
    torch.testing.assert_close(mixed[1](x, emb.bfloat16()), mixed[0](x, emb.bfloat16()))
    assert calls == [torch.float32]  # scale and shift are widened
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(after(x, emb), before(x, emb))
    for given, keywords in (
        ((), {}),
        ((x,), {}),
        ((x, None), {}),
        ((x, emb, emb), {}),
        ((x,), {"y": emb}),
    ):
        with pytest.raises(TypeError):
            before(*given, **keywords)
        with pytest.raises(TypeError):
            after(*given, **keywords)


def test_what_is_set_after_the_swap_has_its_effect(calls) -> None:
    before, after, _ = pair()
    given = inputs()
    changes = {
        "function": lambda n, x, a, b: usual(n, x, a, b) * 2,
        "linear": nn.Sequential(before.linear),
        "norm": nn.LayerNorm(COLS, eps=1.0),
    }
    for name, value in changes.items():
        theirs, mine = copy.deepcopy(before), copy.deepcopy(after)
        for each in (theirs, mine):
            setattr(each, name, value)
        del calls[:]
        torch.testing.assert_close(mine(**given), theirs(**given))
        assert not calls
    after.norm.register_forward_hook(lambda module, args, y: -y)
    before.norm.register_forward_hook(lambda module, args, y: -y)
    torch.testing.assert_close(after(**given), before(**given))
    assert not calls


def test_a_forward_that_its_class_is_given_after_the_swap_runs(monkeypatch) -> None:
    _, after, _ = pair()
    given = inputs()
    monkeypatch.setattr(foreign.AdaptiveNorm, "forward", lambda self, x, emb: 2 * x)
    assert torch.equal(after(**given), 2 * given["x"])


def test_an_argument_that_is_left_out_has_its_effect() -> None:
    before = foreign.OptionalAdaptiveNorm(COLS, usual)
    after = copy.deepcopy(before)
    assert "" in ours.convert(after).swapped
    x, emb = inputs().values()
    for given in ((x, emb), (x,), (x, None)):
        torch.testing.assert_close(after(*given), before(*given))


def test_products_of_parameters_are_not_rounded() -> None:
    torch.manual_seed(0)
    norm = randomized(nn.LayerNorm(512)).bfloat16()
    x, factor, shift = (torch.randn(4, each, 512).bfloat16() for each in (5, 1, 1))
    exact = copy.deepcopy(norm).double()(x.double()) * factor.double() + shift.double()
    ours.convert(norm)
    error = (modulated.modulated(norm, x, factor, shift).double() - exact).abs()
    assert (error <= exact.abs() * torch.finfo(torch.bfloat16).eps / 2 + 1e-5).all()


def test_each_module_is_judged_by_the_modules_inside_of_it() -> None:
    norms = (nn.LayerNorm(COLS), nn.Identity(), nn.LayerNorm(COLS, eps=1e-3))
    done = ours.convert(nn.ModuleList([adaptive(usual, each) for each in norms]))
    assert list(done.swapped) == ["0", "0.norm", "2", "2.norm"]


def test_a_mode_of_the_caller_s_sees_no_trial() -> None:
    from torch.fx import Proxy
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            assert Proxy not in types
            return function(*args, **(kwargs or {}))

    with Mode():
        assert "" in ours.convert(OWN["usual"][0]()).swapped


def test_arguments_that_the_forward_ignores_stay_what_they_are(calls) -> None:
    pytest.importorskip("diffusers.models.normalization")
    before, after, _ = pair("AdaLayerNormZero")
    x, emb = inputs("AdaLayerNormZero").values()
    del calls[:]
    for given, keywords in (((x,), {"emb": emb}), ((x, None, None, None, emb), {})):
        torch.testing.assert_close(after(*given, **keywords), before(*given, **keywords))
    assert len(calls) == 2
    torch.testing.assert_close(after(x, 3, emb=emb), before(x, emb=emb))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["usual", "affine"])
def test_compiled_exported_and_traced(name) -> None:
    before, after, _ = pair(name)
    given = inputs()
    expected = results(before, given)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(after, fullgraph=True, backend=backend)
    torch.testing.assert_close(results(compiled, given), expected)
    shapes = [
        node.meta["example_value"].shape
        for node in graphs[0].graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("example_value"), torch.Tensor)
    ]
    assert shapes.count(given["x"].shape) == 1
    tuples = tuple(given.values())
    for each in (
        torch.export.export(after, tuples).module(),
        torch.jit.trace(after, tuples),
        torch.fx.symbolic_trace(after),
    ):
        torch.testing.assert_close(each(*tuples), expected[0])


def test_gradients_of_each_sample() -> None:
    from torch.func import functional_call, grad, vmap

    def loss(parameters, x, emb, module):
        return functional_call(module, parameters, (x[None], emb[None])).square().sum()

    def per_sample(module):
        parameters = {name: each.detach() for name, each in module.named_parameters()}
        gradients = vmap(grad(loss, (0, 1, 2)), in_dims=(None, 0, 0, None))
        return gradients(parameters, *inputs().values(), module)

    before, after, _ = pair("affine")
    torch.testing.assert_close(per_sample(after), per_sample(before))


def test_copies_and_a_dry_run() -> None:
    for name in ("AdaLayerNormContinuous 3", "AdaLayerNorm"):
        _, after, _ = pair(name)
        given = inputs(name)
        for each in (pickle.loads(pickle.dumps(after)), copy.deepcopy(after)):
            assert type(each) is type(after)
            assert torch.equal(each(**given), after(**given))
    model = nn.ModuleList([OWN["usual"][0](), OWN["usual"][0](), OPAQUE["lists"]()])
    classes = [type(each) for each in model.modules()]
    planned = ours.convert(model, dry_run=True)
    assert [type(each) for each in model.modules()] == classes
    assert planned == ours.convert(model)
    assert list(planned.swapped) == ["0", "0.norm", "1", "1.norm", "2.norm"]
    assert not ours.convert(model).swapped


def test_a_norm_inside_that_was_converted_before() -> None:
    module = OWN["usual"][0]()
    ours.convert(module.norm)
    assert list(ours.convert(module).swapped) == [""]
    assert list(ours.convert(module, undo=True).restored) == ["", "norm"]


SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 8,
    "out_channels": 4,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
}
FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 4, 8),
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 7,
    "norm_type": "ada_norm_zero",
}
COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 2,
    "text_embed_dim": 8,
    "num_layers": 1,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 8,
}
TIMES = torch.tensor([3.0, 7.0])

# The configuration, the arguments by their shapes or as they are, and the number of calls.
MODELS = {
    "SD3Transformer2DModel": (
        SD3,
        {
            "hidden_states": (2, 4, 8, 8),
            "encoder_hidden_states": (2, 5, 16),
            "pooled_projections": (2, 8),
            "timestep": TIMES,
        },
        6,
    ),
    "FluxTransformer2DModel": (
        FLUX,
        {
            "hidden_states": (2, 6, 4),
            "encoder_hidden_states": (2, 5, 32),
            "pooled_projections": (2, 8),
            "timestep": TIMES / 10,
            "img_ids": torch.ones(6, 3),
            "txt_ids": torch.zeros(5, 3),
        },
        4,
    ),
    "DiTTransformer2DModel": (
        DIT,
        {
            "hidden_states": (2, 4, 8, 8),
            "timestep": TIMES.long(),
            "class_labels": torch.tensor([1, 2]),
        },
        2,
    ),
    "CogVideoXTransformer3DModel": (
        COGVIDEOX,
        {
            "hidden_states": (2, 2, 4, 8, 8),
            "encoder_hidden_states": (2, 8, 8),
            "timestep": TIMES,
        },
        5,
    ),
}


def of_model(model, given, dtype):
    """The result, and the gradients of the parameters, as one vector."""
    generator = torch.Generator().manual_seed(1)
    given = {
        name: torch.randn(each, generator=generator).to(dtype) if isinstance(each, tuple) else each
        for name, each in given.items()
    }
    y = model.to(dtype)(**given).sample
    model.zero_grad()
    (y * torch.randn(y.shape, generator=generator).to(y)).sum().backward()
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return y, torch.cat([each.float() for each in gradients])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_diffusers_computes_the_same(name, calls) -> None:
    diffusers = pytest.importorskip("diffusers")
    options, given, number = MODELS[name]
    torch.manual_seed(0)
    before = getattr(diffusers, name)(**options).eval()  # it drops labels in training
    after = copy.deepcopy(before)
    assert not ours.convert(after).left
    # In bfloat16: a few roundings to 8 bits in each layer.
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2.0**-5)):
        del calls[:]
        got, expected = (of_model(each, given, dtype) for each in (after, before))
        assert len(calls) == number
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.dtype == theirs.dtype
            assert (mine - theirs).float().norm() <= tolerance * theirs.float().norm()


@pytest.mark.filterwarnings("ignore")
def test_plain_norms_of_diffusers_are_swapped() -> None:
    library = pytest.importorskip("diffusers.models.normalization")
    model = nn.ModuleList(
        [
            library.FP32LayerNorm(COLS),
            library.FP32LayerNorm(COLS, elementwise_affine=False),
            library.RMSNorm(COLS, 1e-6),
            library.RMSNorm(COLS, 1e-6, elementwise_affine=False),
            library.MochiRMSNorm(COLS, 1e-6),
            library.RMSNorm(COLS, 1e-6, bias=True),  # ours has no bias
        ]
    )
    before = copy.deepcopy(randomized(model))
    assert list(ours.convert(model).swapped) == ["0", "1", "2", "3", "4"]
    for dtype, (mine, theirs) in product(
        (torch.float32, torch.bfloat16), zip(model, before, strict=True)
    ):
        x = inputs()["x"].to(dtype)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            mine.to(dtype)(x), theirs.to(dtype)(x), rtol=tolerance, atol=tolerance
        )
