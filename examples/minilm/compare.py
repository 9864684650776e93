"""Embeddings by PyTorch's layer norms and by ours, then fine-tuning in bfloat16."""

from typing import Any

from minilm import embeddings, fine_tuning, model


def compare(*, paragraphs: int, steps: int) -> dict[str, Any]:
    """Embed at most so many paragraphs each way, then fine-tune so many steps each way."""
    bert, pairs = model.load(paragraphs)
    return {
        "paragraphs": len(pairs),
        "steps": steps,
        "embeddings": embeddings.embed_each_way(bert, pairs),
        "training": fine_tuning.fine_tune_each_way(bert, pairs, steps),
    }
