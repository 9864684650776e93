"""docs/specification.md, "Edges": more than 2^31 elements of tensors."""

from pathlib import Path

import pytest
from own_process import run_alone

pytest.importorskip("torch")

PROBE = Path(__file__).parents[1] / "support" / "many_elements_torch.py"
GIB = 11  # x and y, or x and dx, take 4 each in 16 bits; the rest is PyTorch's own


@pytest.mark.slow
def test_more_than_2_to_the_31_elements_give_the_right_answer() -> None:
    run_alone(PROBE, gib=GIB)
