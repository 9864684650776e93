"""Peak extra memory: the statistics, and one partial per row block, under 1% of x."""

import json
from pathlib import Path

import pytest
from own_process import run_script

PROBE = Path(__file__).parents[1] / "support" / "peak_memory.py"

pytestmark = [
    pytest.mark.starts_python,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
    ),
]

# 256 MiB of x each: 1% of that is far above what Python allocates meanwhile, and above the few
# hundred KiB by which Linux's count may be off.
LAYOUTS = {
    "short_rows": {"shape": [2**20, 64], "axis": -1, "dtype": "float32"},
    "rows": {"shape": [87_383, 769], "axis": -1, "dtype": "float32"},
    "long_rows": {"shape": [1009, 2**16], "axis": -1, "dtype": "float32"},
    "rows_float16": {"shape": [174_763, 769], "axis": -1, "dtype": "float16"},
    "channels_first": {"shape": [257, 256, 1025], "axis": 1, "dtype": "float32"},
    "first_axis": {"shape": [4096, 16_411], "axis": 0, "dtype": "float32"},
}


def extra_part_of_x(call: str, layout: str) -> float:
    case = json.dumps(LAYOUTS[layout] | {"call": call})
    return float(run_script(PROBE, case))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "call", ["forward", "forward in place", "forward with statistics", "backward"]
)
def test_peak_extra_memory_is_under_one_percent_of_x(call, layout) -> None:
    extra = extra_part_of_x(call, layout)
    assert extra < 0.01, f"{extra:.2%} of x beyond the arrays and the statistics"


@pytest.mark.parametrize("layout", ["rows", "channels_first"])
@pytest.mark.parametrize("call", ["forward with a residual", "backward with dtotal"])
def test_a_residual_takes_no_memory(call, layout) -> None:
    assert extra_part_of_x(call, layout) < 0.01


@pytest.mark.parametrize("layout", ["rows", "channels_first"])
@pytest.mark.parametrize("call", ["forward with a gate", "backward with a gate"])
def test_a_gate_takes_no_memory(call, layout) -> None:
    assert extra_part_of_x(call, layout) < 0.01


@pytest.mark.parametrize("layout", ["rows", "channels_first"])
def test_8_bits_take_no_memory_but_theirs(layout) -> None:
    assert extra_part_of_x("quantized", layout) < 0.01


def test_the_measure_of_memory_sees_a_copy() -> None:
    assert 0.98 < extra_part_of_x("copy", "rows") < 1.02
