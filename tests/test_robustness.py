"""docs/specification.md, "Edges": processes, threads, signals; and imports."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import layernorm

SUPPORT = Path(__file__).with_name("support")
DEADLOCK = 120  # seconds; the slowest probe takes two
FRAMEWORKS = {
    *("torch", "jax", "jaxlib", "flax", "equinox", "keras", "tensorflow", "onnxruntime", "triton"),
    *("ml_dtypes", "scipy", "sklearn", "matplotlib", "rich", "mpmath", "hypothesis"),
}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def probe(name: str, prelude: list[str] | None = None, **environment: str) -> str:
    environment = {
        k: v for k, v in os.environ.items() if k != "LAYERNORM_NUM_THREADS"
    } | environment
    command = [*(prelude or [sys.executable]), str(SUPPORT / "process_probes.py"), name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLOCK, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    "name",
    [
        "fork_before_the_pool_is_alive",
        "fork_while_the_pool_is_alive",
        "fork_while_another_thread_computes",
        "fork_of_a_fork",
        "multiprocessing_by_fork",
    ],
)
def test_a_fork_gives_no_deadlock_and_no_wrong_bits(name) -> None:
    probe(name)


def test_several_python_threads_at_once_give_no_wrong_bits() -> None:
    probe("eight_threads_at_once")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="a Python with a GIL")
def test_free_threaded_python_stays_without_a_gil() -> None:
    probe("no_gil")


def test_a_sub_interpreter_gets_an_import_error() -> None:
    told = probe("sub_interpreter")
    assert "ImportError" in told, told
    assert "main interpreter" in told or "subinterpreter" in told, told


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_during_a_call_raises_keyboard_interrupt_after_it() -> None:
    command = [sys.executable, str(SUPPORT / "process_probes.py"), "ctrl_c"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout.readline() == "working\n"
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=DEADLOCK)
        finally:
            process.kill()
    assert output == "interrupted\n", errors
    assert process.returncode == 0


def test_signals_do_not_disturb_a_call() -> None:
    probe("signals_reach_the_main_thread_only")


def test_a_process_may_end_while_a_thread_computes() -> None:
    probe("exit_while_a_thread_computes")


@linux_only
def test_a_process_held_to_one_processor_uses_one_thread() -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    held = f"import os, runpy, sys; os.sched_setaffinity(0, {{{cpu}}}); sys.argv = sys.argv[1:]; "
    held += "runpy.run_path(sys.argv[0], run_name='__main__')"
    probe("one_processor", [sys.executable, "-c", held])


@linux_only
def test_the_environment_sets_the_number_of_threads() -> None:
    probe("three_threads_by_environment", LAYERNORM_NUM_THREADS="3")


def test_spaces_around_a_number_of_threads_do_not_matter() -> None:
    assert threads_and_words(LAYERNORM_NUM_THREADS=" 3\n") == (3, "")


def test_without_the_variable_nothing_is_said() -> None:
    assert threads_and_words()[1] == ""


@pytest.mark.parametrize(
    "value", ["", "0", "-1", "many", "1e3", "2.5", "3 threads", "2K", "1025", "9" * 30]
)
def test_an_invalid_thread_count_in_the_environment_is_told_once_and_not_used(value) -> None:
    expected, _ = threads_and_words()
    threads, said = threads_and_words(LAYERNORM_NUM_THREADS=value)
    assert threads == expected
    (line,) = said.splitlines()
    assert f'LAYERNORM_NUM_THREADS is "{value}", expected a whole number from 1 to 1024' in line
    assert line.endswith(f"the number of processors, {expected}, is used")


def threads_and_words(**environment: str) -> tuple[int, str]:
    """Return the number of threads of another process, asked for twice, and what it tells."""
    code = "import layernorm; print(layernorm.get_num_threads(), layernorm.get_num_threads())"
    others = {k: v for k, v in os.environ.items() if k != "LAYERNORM_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=others | environment,
        capture_output=True,
        text=True,
        timeout=DEADLOCK,
        check=True,
    )
    first, second = map(int, done.stdout.split())
    assert first == second
    return first, done.stderr


@linux_only
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
def test_a_worker_leaves_its_callers_processor() -> None:
    probe("a_worker_leaves_its_callers_processor")


@linux_only
def test_small_inputs_start_no_threads() -> None:
    probe("no_threads_for_small_inputs")


@linux_only
def test_large_inputs_start_threads() -> None:
    """Otherwise the test before could not fail."""
    probe("threads_for_large_inputs")


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_the_number_of_threads_can_be_set(count, set_num_threads) -> None:
    set_num_threads(count)
    assert layernorm.get_num_threads() == count


@pytest.mark.parametrize("count", [0, -1, 2**31, 2**70, -(2**70)])
def test_a_number_of_threads_out_of_range_is_a_value_error(count, set_num_threads) -> None:
    before = layernorm.get_num_threads()
    with pytest.raises(ValueError, match=rf"{count}\b.*1"):
        set_num_threads(count)
    assert layernorm.get_num_threads() == before


@pytest.mark.parametrize("count", [2.0, "2", None, [2]])
def test_a_number_of_threads_that_is_not_an_int_is_a_type_error(count, set_num_threads) -> None:
    with pytest.raises(TypeError):
        set_num_threads(count)


def test_numpy_integers_count_as_ints(set_num_threads) -> None:
    set_num_threads(np.int64(2))
    assert layernorm.get_num_threads() == 2


def imported_by(code: str, **environment: str) -> set[str]:
    show = f"import sys, json; {code}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", show]
    output = subprocess.check_output(command, text=True, env=os.environ | environment)
    return {name.partition(".")[0] for name in json.loads(output)}


def test_import_layernorm_imports_no_framework() -> None:
    used = (
        "import layernorm, layernorm.numpy, numpy as np; "
        "layernorm.layer_norm(np.ones((2, 3), np.float32), axis=0); layernorm.rms_norm([1.0])"
    )
    for code in ("import layernorm", used):
        assert imported_by(code) & FRAMEWORKS == set()


def test_the_search_for_frameworks_finds_one(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "keras.py").write_text("")
    imported = imported_by("import layernorm, torch, keras", PYTHONPATH=str(tmp_path))
    assert imported & FRAMEWORKS == {"torch", "keras"}


def import_milliseconds(module: str) -> float:
    """Measure an import after NumPy's, as Python itself reports it."""
    code = f"import numpy, {module}"
    command = [sys.executable, "-X", "importtime", "-c", code]
    account = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for line in account.splitlines():
        _, cumulative, name = line.removeprefix("import time:").split("|")
        if name.strip() == module:
            return int(cumulative) / 1000
    raise LookupError(module)


def test_import_layernorm_takes_under_50_ms_more_than_numpy() -> None:
    # It takes 5. The least of several, because the machine may be busy.
    assert min(import_milliseconds("layernorm") for _ in range(7)) < 50
