"""The TensorFlow front end, each file of its tests in a process of its own (see own_process.py)."""

import importlib.util
import sys

import pytest
from own_process import run, run_tests

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("could not import tensorflow", allow_module_level=True)


@pytest.mark.parametrize(
    ("file", "tests"), [("same_bits", 20), ("transforms", 56), ("xla", 57)], ids=str
)
def test_inside(file, tests) -> None:
    assert run_tests(f"tensorflow/inside_{file}.py")["passed"] >= tests


PROBE = """
import pathlib
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(3)
import layernorm, layernorm.tensorflow as ours
layernorm.set_num_threads(7)
x = tf.ones((1009, 769))
def threads(): return len(list(pathlib.Path("/proc/self/task").iterdir()))
ours.layer_norm(x[:1])
before = threads()
ours.layer_norm(x)
print(threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_threads_are_bounded_by_tensorflows_own_setting() -> None:
    done = run([sys.executable, "-c", PROBE])
    assert int(done.stdout.split()[-1]) == 2  # the third is the thread that calls
