"""docs/specification.md, "Edges": more than 2^31, and more than 2^32, elements.

In a process whose memory is limited, so that an extra copy of x fails instead of starving the
machine.
"""

from pathlib import Path

import pytest
from own_process import run_alone

PROBE = Path(__file__).parents[1] / "support" / "many_elements.py"
GIB = 10  # 2^32 elements take 8 in 16 bits; as much again would be too much


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["rows", "channels_first"])
@pytest.mark.parametrize("what", ["forward", "parameters", "dx"])  # dx: more than 2^31
def test_more_than_2_to_the_32_elements_give_the_right_answer(what, layout) -> None:
    run_alone(PROBE, f"{what}_of_{layout}", str(GIB), gib=GIB)
