"""convert(): norms with a gate, of our own making and of transformers."""

import copy
import pickle
from functools import cache
from itertools import product

import foreign_norms as foreign
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm.torch.conversion.converted import Recognized  # noqa: E402

COLS = 12

one_thread = pytest.fixture(foreign.one_thread, autouse=True)

SERVED = {
    "norm first, rounded": lambda: foreign.GatedNorm(COLS),
    "norm first, gemma": lambda: foreign.GatedNorm(COLS, offset=1.0, round_first=False),
    "gate first": lambda: foreign.GateFirstNorm(COLS, COLS),
    "gate first, groups": lambda: foreign.GateFirstNorm(COLS, 4),
    "silu": lambda: foreign.ActivationNorm(COLS, "silu"),
    "sigmoid": lambda: foreign.ActivationNorm(COLS, "sigmoid"),
    "layer norm": lambda: foreign.GatedLayerNorm(COLS),
    "no parameters": foreign.GatedL2Norm,
}

each_served = pytest.mark.parametrize("name", SERVED)


@cache
def converted(name):
    torch.manual_seed(0)
    module = SERVED[name]()
    with torch.no_grad():
        for each in module.parameters():
            each.copy_(torch.randn_like(each))
    after = copy.deepcopy(module)
    done = ours.convert(after)
    assert list(done.swapped) == [""], done
    return module, after


def pair(name):
    """A norm with a gate, and a converted copy."""
    return copy.deepcopy(converted(name))


def inputs(*shape):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape or (3, 5, COLS), generator=generator) for _ in range(2)]


def results(module, *given):
    """y, and the gradients of x, the gate and the parameters."""
    given = [each.detach().requires_grad_() for each in given]
    y = module(*given)
    generator = torch.Generator().manual_seed(2)
    dy = torch.randn(y.shape, generator=generator).to(y.dtype)
    return y, *torch.autograd.grad(y, [*given, *module.parameters()], dy)


@pytest.fixture
def served(monkeypatch):
    """A list of the types of x, the weight and the gate in the calls that ours has served."""
    calls = []
    serves = Recognized.serves

    def recording(self, module, x, gate=None):
        is_served = serves(self, module, x, gate)
        if is_served and gate is not None:
            weight = getattr(module, "weight", x)
            calls.append((x.dtype, weight.dtype, gate.dtype))
        return is_served

    monkeypatch.setattr(Recognized, "serves", recording)
    return calls


@each_served
def test_a_norm_with_a_gate_is_swapped_with_the_same_results_and_back(name, served) -> None:
    before, after = pair(name)
    x, gate = inputs()
    torch.testing.assert_close(results(after, x, gate), results(before, x, gate))
    assert len(served) == 1
    # The squares of these rows leave the range of float32.
    torch.testing.assert_close(after(x * 1e30, gate), after(x, gate), rtol=1e-3, atol=1e-3)
    assert "by layernorm" in repr(after)
    assert list(ours.convert(after, undo=True).restored) == [""]
    assert type(after) is type(before)
    assert torch.equal(after(x, gate), before(x, gate))


def test_a_gate_may_come_by_its_name(served) -> None:
    x, gate = inputs()
    for name, names in (("gate first", ("hidden_states", "gate")), ("silu", ("x", "z"))):
        before, after = pair(name)
        given = dict(zip(names, (x, gate), strict=True))
        for arguments, keywords in (
            ((x,), {names[1]: gate}),
            ((), given),
            ((), dict(reversed(given.items()))),
        ):
            torch.testing.assert_close(after(*arguments, **keywords), before(x, gate))
        with pytest.raises(TypeError):
            after(x, wrong=gate)
        with pytest.raises(TypeError):
            after(x, gate, gate)
        with pytest.raises(TypeError):
            after(x, gate, **{names[0]: x})
    assert len(served) == 6


def nearly(function):
    return foreign.NearlyGatedNorm(COLS, function)


def by_mode(norm, x, gate):
    is_training = norm.__self__.training
    return norm(x * F.silu(gate)) if is_training else norm(x) * F.silu(gate)


def test_what_is_nearly_a_gate_is_left_and_the_reason_named() -> None:
    other = "neither norm(x) * act(gate) nor norm(x * act(gate))"
    expected = {
        nearly(lambda norm, x, gate: norm(x) * torch.tanh(gate)): other,
        nearly(lambda norm, x, gate: norm(x) * F.gelu(gate)): other,
        nearly(lambda norm, x, gate: norm(x) * gate): other,
        nearly(lambda norm, x, gate: norm(x) + F.silu(gate)): other,
        nearly(lambda norm, x, gate: norm(x) * F.silu(gate) * F.silu(gate)): other,
        nearly(lambda norm, x, gate: norm(x) * (1 + F.silu(gate))): other,
        nearly(lambda norm, x, gate: norm(gate) * F.silu(x)): other,
        nearly(lambda norm, x, gate: norm(x)): other,
        nearly(lambda norm, x, gate: (norm(x), gate)): other,
        nearly(lambda norm, x, gate: norm(x) * F.silu(gate.detach())): "other gradients",
        nearly(lambda norm, x, gate: norm(x * F.silu(gate).detach())): "other gradients",
        nearly(by_mode): "other results than ours in training mode",
        nearly(lambda norm, x, gate: norm(x) * F.silu(gate.clamp(-20, 20))): "gates of about 3e+01",
        nearly(lambda norm, x, gate: norm(x) * F.silu(gate.nan_to_num())): "rows of NaN",
        nearly(lambda norm, x, gate: norm(x) * F.silu(gate, inplace=True)): "raises RuntimeError",
        nearly(lambda norm, x, gate: norm(x, gate)): "raises TypeError when it is tried on the CPU "
        "with gate of x's shape",
        foreign.GateFirstNorm(COLS, 4, axis=-2): other,
        foreign.ActivationNorm(COLS, "gelu"): "neither norm(x) * act(z)",
    }
    model = nn.ModuleList(expected)
    done = ours.convert(model)
    assert not done.swapped
    for place, words in enumerate(expected.values()):
        assert words in done.left[str(place)], (place, done.left[str(place)])


TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def errors(got, exact):
    return [
        ((mine.double() - right).abs().max() / right.abs().max()).item()
        for mine, right in zip(got, exact, strict=True)
    ]


@pytest.mark.parametrize("name", ["norm first, rounded", "gate first, groups", "sigmoid"])
def test_no_types_become_worse(name, served) -> None:
    module, after = pair(name)
    x, gate = inputs()
    for x_type, of_parameters, of_gate, autocast in product(TYPES, TYPES, TYPES, (False, True)):
        if autocast and torch.float64 in (x_type, of_parameters, of_gate):
            continue
        given = x.to(x_type), gate.to(of_gate)
        theirs_of, ours_of = (copy.deepcopy(each).to(of_parameters) for each in (module, after))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            theirs, mine = results(theirs_of, *given), results(ours_of, *given)
        assert [each.dtype for each in mine] == [each.dtype for each in theirs]
        exact = results(copy.deepcopy(theirs_of).double(), *(each.double() for each in given))
        types = (x_type, of_parameters, of_gate, torch.float32)
        rounding = max(torch.finfo(each).eps for each in types)
        for error, allowed in zip(errors(mine, exact), errors(theirs, exact), strict=True):
            assert error <= allowed + 2 * rounding, types
    # The types of a whole model, and what a scan in float32 gives to a model in bfloat16.
    of_models = {(each, each, each) for each in TYPES if each != torch.float64}
    assert of_models | {(torch.float32, torch.bfloat16, torch.bfloat16)} <= {*served}


def test_a_gate_in_16_bits_with_float32_x_is_widened(served) -> None:
    before, after = pair("gate first, groups")
    x, gate = inputs()
    for each in (before, after):
        each.bfloat16()
    got, expected = (results(each, x, gate.bfloat16()) for each in (after, before))
    assert served == [(torch.float32, torch.bfloat16, torch.bfloat16)]
    assert [each.dtype for each in got] == [each.dtype for each in expected]
    torch.testing.assert_close(got, expected)


def test_a_call_that_no_trial_has_covered_is_the_original_s(served) -> None:
    before, after = pair("norm first, rounded")
    x, gate = inputs()
    with torch.inference_mode():
        inferred = gate.clone()
    calls = [
        (x,),
        (x, None),
        (x, gate[:, :1]),
        (x, gate[..., :1]),
        (x, gate.double()),
        (x[:0], gate[:0]),
        (x, gate.transpose(0, 1).contiguous().transpose(0, 1)),
        (x, gate[:, :1].expand_as(x)),
        (x, inferred),
    ]
    for given in calls:
        assert torch.equal(after(*given), before(*given))
    with pytest.raises(TypeError):
        after(x, 2.0)
    assert not served
    for given in ((x[:, :3], gate[:, 1:4]), (x[0, 0], gate[0, 0])):
        torch.testing.assert_close(after(*given), before(*given))
    assert len(served) == 2


def test_what_is_set_after_the_swap_has_its_effect(served) -> None:
    x, gate = inputs()
    for name, attribute, value in (
        ("silu", "activation", "sigmoid"),
        ("gate first, groups", "group_size", 3),
    ):
        before, after = pair(name)
        for each in (before, after):
            setattr(each, attribute, value)
        assert torch.equal(after(x, gate), before(x, gate))
        assert not served
    before, after = pair("gate first, groups")
    before.eps = after.eps = 0.5
    torch.testing.assert_close(after(x, gate), before(x, gate))
    assert served


@each_served
def test_y_has_the_memory_format_of_the_original(name) -> None:
    before, after = pair(name)
    x, gate = inputs()
    permuted = [each.transpose(0, 1).contiguous().transpose(0, 1) for each in (x, gate)]
    sliced = [each[:, :3] for each in (x, gate)]
    for given in ((x, permuted[1]), (permuted[0], gate), permuted, sliced):
        try:
            expected = before(*given)
        except RuntimeError:  # a view that is not one
            with pytest.raises(RuntimeError):
                after(*given)
        else:
            y = after(*given)
            torch.testing.assert_close(y, expected)
            assert y.stride() == expected.stride()


@pytest.mark.parametrize("name", ["norm first, rounded", "gate first, groups"])
def test_compiled_and_exported(name) -> None:
    before, after = pair(name)
    x, gate = inputs()
    expected = results(before, x, gate)
    torch._dynamo.reset()
    compiled = torch.compile(after, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, x, gate), expected)
    torch.testing.assert_close(compiled(x * 1e30, gate=gate), expected[0], rtol=1e-3, atol=1e-3)
    exported = torch.export.export(after, (x, gate)).module()
    torch.testing.assert_close(exported(x, gate), expected[0])


@pytest.mark.parametrize("name", ["norm first, rounded", "gate first", "gate first, groups"])
def test_gradients_of_each_sample(name) -> None:
    from torch.func import functional_call, grad, vmap

    def loss(parameters, x, gate, module):
        return functional_call(module, parameters, (x, gate)).square().sum()

    def per_sample(module):
        parameters = {name: each.detach() for name, each in module.named_parameters()}
        gradients = vmap(grad(loss, (0, 1, 2)), in_dims=(None, 0, 0, None))
        return gradients(parameters, *inputs(), module)

    before, after = pair(name)
    torch.testing.assert_close(per_sample(after), per_sample(before))


def test_copies_and_a_dry_run() -> None:
    _, after = pair("gate first, groups")
    x, gate = inputs()
    for each in (pickle.loads(pickle.dumps(after)), copy.deepcopy(after)):
        assert type(each) is type(after)
        assert torch.equal(each(x, gate), after(x, gate))
    model = nn.ModuleList([SERVED["silu"](), nearly(by_mode)])
    classes = [type(each) for each in model]
    planned = ours.convert(model, dry_run=True)
    assert [type(each) for each in model] == classes
    assert planned == ours.convert(model)
    assert list(planned.swapped) == ["0"]


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"num_heads": 8, "head_dim": 8}
OF_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8}
SMALL_CHUNKS = {"mamba_chunk_size": 4}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

# The configuration's arguments, and how many norms with a gate are swapped.
MODELS = {
    "Mamba2": (HEADS | {"state_size": 8, "n_groups": 2, "chunk_size": 4}, 2),
    "Bamba": (OF_MAMBA | SMALL_CHUNKS | {"attn_layer_indices": [1]}, 1),
    "Zamba2": (
        {
            "layers_block_type": ["mamba", "hybrid"],
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 2,
            "chunk_size": 4,
        },
        2,
    ),
    "NemotronH": (
        {
            "layers_block_type": ["mamba", "attention"],
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 4,
            "head_dim": 8,
        },
        1,
    ),
    "GraniteMoeHybrid": (
        OF_MAMBA
        | SMALL_CHUNKS
        | {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 32,
        },
        1,
    ),
    "FalconH1": (OF_MAMBA | SMALL_CHUNKS | {"mamba_d_ssm": 64, "mamba_rms_norm": True}, 2),
    "Qwen3Next": (LINEAR | {"head_dim": 8, "num_experts": 0, "mlp_only_layers": [0, 1]}, 1),
    "OlmoHybrid": (LINEAR, 1),
    "KimiLinear": (
        {
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "dense"],
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "num_local_experts": 2,
            "moe_intermediate_size": 16,
        },
        1,
    ),
}


def model_of(name):
    transformers = pytest.importorskip("transformers")
    options, number = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for each in model.parameters():
            if each.dim() == 1:
                each.add_(torch.randn_like(each), alpha=0.1)
    return model, number


def of_model(model):
    """The logits, and the gradients of the parameters, as one vector."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 99, (2, 8), generator=generator)
    y = model(input_ids=ids, use_cache=False)[0]
    model.zero_grad()
    (y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum().backward()
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return y, torch.cat([each.float() for each in gradients])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_computes_the_same(name, served) -> None:
    before, number = model_of(name)
    after = copy.deepcopy(before)
    done = ours.convert(after)
    assert sum("Gated" in kind for kind in done.swapped.values()) == number
    assert not done.left
    # In bfloat16: a few roundings to 8 bits in each layer.
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2.0**-5)):
        del served[:]
        got, expected = of_model(after.to(dtype)), of_model(before.to(dtype))
        assert len(served) == number
        for mine, theirs in zip(got, expected, strict=True):
            assert mine.dtype == theirs.dtype
            assert (mine - theirs).float().norm() <= tolerance * theirs.float().norm()
