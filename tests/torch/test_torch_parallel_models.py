"""A transformer over several processes: tensor, sequence and data parallelism, checkpointing.

Outputs and gradients are judged by PyTorch's norms in float64, on one process.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available():
    pytest.skip("PyTorch has no distributed", allow_module_level=True)

from pairs import half_of_all  # noqa: E402
from processes import start_processes  # noqa: E402
from split_calls import Traffic  # noqa: E402
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (  # noqa: E402
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: E402
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh  # noqa: E402
from torch.distributed.tensor.parallel import (  # noqa: E402
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.checkpoint import (  # noqa: E402
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformer_plans import (  # noqa: E402
    PLANS,
    TOKENS,
    VOCABULARY,
    Block,
    Transformer,
    parallelized,
    whole,
)

import layernorm.torch as ours  # noqa: E402

BATCH = 4
KINDS = ("RMSNorm", "LayerNorm")
TOLERANCE = 1e-5
"""Of the largest element. The float32 products around the norms leave 2e-6."""


class Problem(NamedTuple):
    kind: str
    tokens: Any
    dscores: Any
    scores: Any  # of the whole batch on one process
    gradients: dict[str, Any]


def initial(make_norm: Callable[[int], Any], **options: bool) -> Any:
    """Make the model with the same weights each time."""
    torch.manual_seed(1)
    return Transformer(make_norm, **options)


@cache
def problem(kind: str) -> Problem:
    model = initial(getattr(torch.nn, kind)).double()
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS))
    dscores = torch.randn(BATCH, TOKENS, VOCABULARY)
    scores = model(tokens)
    scores.backward(dscores.double())
    gradients = {name: each.grad for name, each in model.named_parameters()}
    return Problem(kind, tokens, dscores, scores.detach(), gradients)


def check_close(found: Any, expected: Any, name: str) -> None:
    # The bias of the keys' norm has a zero gradient: it shifts all scores of a query alike.
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    error = float((whole(found).detach() - expected).abs().max())
    assert error <= allowed, (name, error, allowed)


def check(model: Any, given: Problem, rank: int = 0, processes: int = 1) -> None:
    """Run the model on this process's part of the batch."""
    part = slice(rank, None, processes)
    scores = model(given.tokens[part])
    scores.backward(given.dscores[part] * processes)  # data parallelism takes the mean
    check_close(scores, given.scores[part], "scores")
    wrappers = ("_checkpoint_wrapped_module.", "module.")
    for name, parameter in model.named_parameters():
        for each in wrappers:
            name = name.replace(each, "")
        check_close(parameter.grad, given.gradients[name], name)


# ---- tensor and sequence parallelism


def check_plans(mesh: Any) -> None:
    if mesh.size() == 2:
        every = half_of_all(KINDS, list(PLANS), (False, True))
    else:
        every = product(KINDS, PLANS, (True,))
    for kind, plan, fuses in every:
        model = initial(getattr(ours, kind), fuses=fuses)
        check(parallelized(model, mesh, plan), problem(kind))


class LlamaNorm(torch.nn.Module):
    """As transformers has it: the converted module runs this forward for a DTensor."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden))
        self.variance_epsilon = torch.finfo(torch.float32).eps

    def forward(self, x: Any) -> Any:
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(mean + self.variance_epsilon))


def check_converted_models(mesh: Any) -> None:
    norms = (*((kind, getattr(torch.nn, kind)) for kind in KINDS), ("RMSNorm", LlamaNorm))
    for (kind, make_norm), plan, comes_first in half_of_all(norms, list(PLANS), (True, False)):
        expected = ours.convert(initial(make_norm)).swapped
        assert len(expected) == 9  # two and those of queries and keys in each block, and one
        model = initial(make_norm)
        if not comes_first:
            parallelized(model, mesh, plan)
        assert ours.convert(model).swapped == expected
        if comes_first:
            parallelized(model, mesh, plan)
        check(model, problem(kind))


def check_collectives(mesh: Any) -> None:
    """Norms of a sharded hidden axis add nothing but the gathering of moments.

    x has 120 bytes a row.
    """

    def communication(make_norm: Any, plan: str) -> list[Traffic]:
        model = parallelized(initial(make_norm), mesh, plan)
        tokens = torch.zeros(BATCH, TOKENS, dtype=torch.int64)
        with Traffic() as forward:
            scores = model(tokens)
        with Traffic() as backward:
            scores.backward(torch.ones_like(scores))
        return [forward, backward]

    norms = 5  # those of queries and keys are of whole heads
    rows = BATCH * TOKENS * norms * (mesh.size() - 1)
    for kind in KINDS:
        of_rows = (8, 16) if kind == "RMSNorm" else (16, 24)  # bytes
        for plan in ("hidden", "hidden, parameters too"):
            ours_are = communication(getattr(ours, kind), plan)
            without = communication(lambda hidden: torch.nn.Identity(), plan)
            for mine, others, most in zip(ours_are, without, of_rows, strict=True):
                more = Counter(mine.collectives()) - Counter(others.collectives())
                if plan == "hidden" and mine is ours_are[1]:  # gradients of replicated parameters
                    gathers = norms * (2 if kind == "RMSNorm" else 3)
                    assert more == {"all_gather_into_tensor": gathers}
                else:
                    assert more == {"all_gather_into_tensor": norms}
                    assert 0 < mine.bytes - others.bytes <= most * rows


# ---- checkpointing


def checkpoint_by_function(model: Any, **options: Any) -> None:
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **options)


def checkpoint_selectively(model: Any) -> None:
    saved = [torch.ops.aten.mm.default]
    contexts = partial(create_selective_checkpoint_contexts, saved)
    checkpoint_by_function(model, context_fn=contexts)


def checkpoint_by_wrapper(model: Any) -> None:
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda module: isinstance(module, Block),
    )


MAY_CHECKPOINT = (lambda model: None, checkpoint_by_wrapper)


def check_checkpointing(mesh: Any) -> None:
    ways = (checkpoint_by_function, checkpoint_selectively, checkpoint_by_wrapper)
    for kind, plan, enable in half_of_all(KINDS, list(PLANS), ways):
        model = parallelized(initial(getattr(ours, kind), fuses=True), mesh, plan)
        enable(model)
        check(model, problem(kind))


# ---- data parallelism


def shard_fully(model: Any, mesh: Any) -> Any:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def check_data_parallelism(mesh: Any) -> None:
    at = mesh.get_local_rank(), mesh.size()
    ways = (DistributedDataParallel, partial(shard_fully, mesh=mesh))
    for kind, enable, parallel in half_of_all(KINDS, MAY_CHECKPOINT, ways):
        model = initial(getattr(ours, kind), fuses=True)
        enable(model)
        check(parallel(model), problem(kind), *at)


def check_two_dimensions(mesh: Any) -> None:
    at = mesh.get_local_rank("data"), mesh["data"].size()
    for kind, plan, enable in half_of_all(KINDS, list(PLANS), MAY_CHECKPOINT):
        model = parallelized(initial(getattr(ours, kind), fuses=True), mesh["tensor"], plan)
        enable(model)
        check(shard_fully(model, mesh["data"]), problem(kind), *at)


def check_norms_in_float32_in_a_model_in_bfloat16(mesh: Any) -> None:
    """Their gradients are rounded nowhere on the way, with a policy of their own."""
    cols = 16
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    torch.manual_seed(2)
    x, dy = (torch.randn(4, 64, cols).bfloat16() for _ in range(2))
    expected = {"bias": dy.double().sum((0, 1))}
    xhat = torch.nn.functional.layer_norm(x.double(), (cols,))
    expected["weight"] = (dy.double() * xhat).sum((0, 1))
    part = slice(mesh.get_local_rank("data"), None, mesh["data"].size())
    errors = {}
    for axis in (1, 2):
        for policy in (bf16, MixedPrecisionPolicy()):
            model = torch.nn.Sequential(ours.LayerNorm(cols))
            style = SequenceParallel(sequence_dim=axis)
            parallelize_module(model, mesh["tensor"], {"0": style})
            fully_shard(model[0], mesh=mesh["data"], mp_policy=policy)
            fully_shard(model, mesh=mesh["data"], mp_policy=bf16)
            own_x, own_dy = (
                distribute_tensor(each[part], mesh["tensor"], [Shard(axis)]) for each in (x, dy)
            )
            y = model(own_x)
            assert y.dtype == torch.bfloat16
            y.backward(own_dy * mesh["data"].size())
            errors[axis, policy is bf16] = max(
                float((whole(getattr(model[0], name).grad) - exact).norm() / exact.norm())
                for name, exact in expected.items()
            )
    for (_, is_rounded), error in errors.items():
        assert 1e-4 < error < 1e-2 if is_rounded else error < 1e-6, errors


# ---- processes


def work() -> None:
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    check_plans(mesh)
    if world == 2:
        check_collectives(mesh)
        check_converted_models(mesh)
        check_checkpointing(mesh)
        check_data_parallelism(mesh)
    else:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        check_two_dimensions(mesh)
        check_norms_in_float32_in_a_model_in_bfloat16(mesh)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_have_the_results_of_one(world) -> None:
    start_processes(work, world)
