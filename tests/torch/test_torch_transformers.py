"""convert() on small models of transformers, with random parameters."""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import layernorm.torch as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STATES = {"state_size": 8}
MAMBA2 = STATES | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2, "chunk_size": 8}
GROUPS = {
    f"{name}_groups": 1 for name in ("q", "k", "v", "post_attention", "intermediate", "output")
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}

# The configuration's arguments, how many norms are swapped, and what is left.
MODELS = {
    "Llama": (SIZES, 3, None),
    "Gemma2": (SIZES | {"head_dim": 8}, 5, None),
    "Olmo": (SIZES, 3, None),
    "Nemotron": (SIZES | {"head_dim": 8, "num_key_value_heads": 4}, 3, None),
    "Cohere": (SIZES | {"use_qk_norm": True}, 2, "weight of shape (4, 8)"),
    "Mamba2": (SIZES | MAMBA2, 3, None),
    "FalconMamba": (SIZES | STATES, 5, None),
    "SqueezeBert": (SIZES | GROUPS | {"embedding_size": 32}, 3, None),
    "T5": (SIZES | T5, 3, None),
}


def make(name):
    options, swapped, left = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    kind = {"SqueezeBert": "SqueezeBertModel", "T5": "T5EncoderModel"}.get(
        name, f"{name}ForCausalLM"
    )
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for each in model.parameters():
            if each.dim() == 1:
                each.add_(torch.randn_like(each), alpha=0.1)
    return model, swapped, left


def results(model, **given):
    """The model's first result, and the gradients of its parameters."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 99, (2, 8), generator=generator)
    y = model(**(given or {"input_ids": ids}))[0]
    model.zero_grad()
    (y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum().backward()
    return y, [each.grad for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_and_its_norms_come_back(name) -> None:
    model, swapped, left = make(name)
    converted = copy.deepcopy(model)
    done = ours.convert(converted)
    assert len(done.swapped) == swapped, done
    assert (left in str(done)) if left else not done.left
    torch.testing.assert_close(results(converted), results(model), rtol=1e-4, atol=1e-4)
    ours.convert(converted, undo=True)
    assert [type(each) for each in converted.modules()] == [type(each) for each in model.modules()]
    assert torch.equal(results(converted)[0], results(model)[0])


@pytest.mark.parametrize("name", MODELS)
def test_types_under_autocast_and_in_bfloat16_are_the_model_s(name) -> None:
    model, *_ = make(name)
    for dtype in (torch.float32, torch.bfloat16):
        before = copy.deepcopy(model).to(dtype)
        after = copy.deepcopy(before)
        ours.convert(after)
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                expected, got = results(before), results(after)
            assert got[0].dtype == expected[0].dtype
            error = (got[0].float() - expected[0].float()).norm() / expected[0].float().norm()
            assert error < 2**-5  # a few roundings to 8 bits in each layer


def test_float32_embeddings_into_a_bfloat16_model() -> None:
    model = make("Llama")[0].bfloat16()
    embeddings = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(2))
    with pytest.raises(RuntimeError, match="dtype") as expected:
        results(model, inputs_embeds=embeddings)
    ours.convert(model)
    with pytest.raises(RuntimeError) as got:
        results(model, inputs_embeds=embeddings)
    assert str(got.value) == str(expected.value)


def test_generation_gives_the_same_tokens() -> None:
    model = make("Llama")[0]
    ids = torch.arange(3, 11).view(1, 8)
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **options)
    ours.convert(model)
    assert torch.equal(model.generate(ids, **options), expected)
