"""The TensorFlow front end: its tests run in a process of their own (see own_process.py)."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from own_process import run, run_script, run_tests

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("could not import tensorflow", allow_module_level=True)


FILES = "gate kept_axes same_bits residual quantized transforms xla tools"


def test_inside() -> None:
    """One process, not one for each file: TensorFlow takes long to start."""
    files = [f"tensorflow/inside_{name}.py" for name in FILES.split()]
    assert run_tests(*files, timeout=900)["passed"] >= 840


def test_models_train_under_a_distribution_strategy_as_with_keras() -> None:
    pytest.importorskip("keras")
    script = Path(__file__).parents[1] / "support" / "keras_mirrored.py"
    losses = json.loads(run_script(script, KERAS_BACKEND="tensorflow").splitlines()[-1])
    assert losses["kerass"][-2] < losses["kerass"][0]
    for kind in ("ours", "converted"):
        assert losses[kind] == pytest.approx(losses["kerass"], rel=1e-5)


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_are_bounded_by_tensorflows_own_setting() -> None:
    done = run([sys.executable, "-c", PROBE])
    assert int(done.stdout.split()[-1]) == 2  # the calling thread is the third
