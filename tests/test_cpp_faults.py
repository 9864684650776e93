"""`make faults` plants faults in the C++; here, only that each finds its text and its test."""

import subprocess
import sys
from pathlib import Path


def test_every_fault_finds_its_text_and_its_test() -> None:
    command = [sys.executable, str(Path(__file__).parent / "cpp_faults"), "--list"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
