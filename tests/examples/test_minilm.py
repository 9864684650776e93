"""The example minilm, where the model's package is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_minilm_has_the_same_embeddings_and_righter_gradients(capsys) -> None:
    from minilm import requirements

    if requirements.missing():
        pytest.skip(requirements.message())
    from minilm import compare, tables

    found = compare.compare(paragraphs=4, steps=1)
    embeddings, training = found["embeddings"], found["training"]
    for way in ("convert", "accelerate"):
        assert embeddings["float32"][way]["similarity"] >= 0.999999
        # With PyTorch's layer norms too, bfloat16 itself is further from float32 than that.
        assert embeddings["bfloat16"][way]["similarity"] >= 0.999
    for parameter in ("weight", "bias"):
        assert training["convert"]["norm"][parameter] < 2**-8  # half a unit of bfloat16
        for against in ("norm", "model"):
            ours, theirs = (training[way][against][parameter] for way in ("convert", "PyTorch"))
            assert ours < theirs
    tables.print_comparison(found)
    assert "cosine to PyTorch's float32" in capsys.readouterr().out


def test_minilm_says_what_is_missing() -> None:
    code = (
        "import sys; from minilm import requirements; from minilm.__main__ import main; "
        "requirements.PACKAGES = ('torch', 'no_such_package'); sys.argv[1:] = []; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "MiniLM needs no_such_package" in done.stderr
