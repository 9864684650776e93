"""The demo's real model, where its package is installed."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("rich")

from layernorm.cli import minilm
from layernorm.cli.teller import Teller


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_minilm_has_the_same_embeddings_and_righter_gradients() -> None:
    if minilm.missing():
        pytest.skip(f"not installed: {', '.join(minilm.missing())}")
    story = minilm.run(Teller(None), paragraphs=64, steps=2)
    embeddings, training = story["embeddings"], story["training"]
    for way in ("convert", "accelerate"):
        assert embeddings["float32"][way]["similarity"] >= 0.999999
        # bfloat16 itself is further from float32 than that, by PyTorch's layer norms too.
        assert embeddings["bfloat16"][way]["similarity"] >= 0.999
    for parameter in ("gamma", "beta"):
        assert training["convert"]["norm"][parameter] < 2**-8  # half a unit of bfloat16
        for against in ("norm", "model"):
            ours, theirs = (training[way][against][parameter] for way in ("convert", "PyTorch"))
            assert ours < theirs


def test_minilm_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "NEEDS", ("torch", "no_such_package"))
    with pytest.raises(ImportError, match="MiniLM needs no_such_package"):
        minilm.run(Teller(None))
