"""The demo's real model, where its package is installed."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")

from layernorm.cli import minilm
from layernorm.cli.demo import Teller


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_minilm_has_the_same_embeddings_and_righter_gradients() -> None:
    if minilm.missing():
        pytest.skip(f"not installed: {', '.join(minilm.missing())}")
    story = minilm.run(Teller(None), steps=2)
    for way in ("convert", "accelerate"):
        assert story["float32"][way]["similarity"] >= 0.999999
    for name in ("gamma_error", "beta_error"):
        assert story["training"]["convert"][name] < 2**-8  # half a unit of bfloat16
        assert story["training"]["PyTorch"][name] > story["training"]["convert"][name]
