"""Probes of test_robustness.py, each run in a process of its own: python process_probes.py PROBE.

A probe fails by an exception; a deadlock, by its caller's timeout.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

import layernorm
import layernorm.numpy as ours
from layernorm import _native, reference

RNG = np.random.default_rng(0)
LARGE = RNG.standard_normal((1009, 769)).astype(np.float32)  # work for every thread of the pool
WEIGHT = RNG.standard_normal(769).astype(np.float32)


def forward_and_backward(x: np.ndarray = LARGE) -> list[bytes]:
    weight = WEIGHT[: x.shape[-1]]
    y, stats = ours.layer_norm_forward(x, weight, weight)
    return [array.tobytes() for array in (y, *ours.layer_norm_backward(x, x, stats, weight))]


def threads_alive() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def run_in_child(expected: list[bytes]) -> int:
    """Fork; return the child's exit status: 0 if it got the expected bits."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if forward_and_backward() == expected else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_before_the_pool_is_alive() -> None:
    child = os.fork()
    computed = np.isfinite(ours.layer_norm(LARGE)).all()
    if child == 0:
        os._exit(0 if computed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def fork_while_the_pool_is_alive() -> None:
    layernorm.set_num_threads(4)
    expected = forward_and_backward()
    for _ in range(20):
        assert run_in_child(expected) == 0
        assert forward_and_backward() == expected


def fork_while_another_thread_computes() -> None:
    layernorm.set_num_threads(4)
    expected = forward_and_backward()
    stop = threading.Event()
    results = []

    def compute() -> None:
        while not stop.is_set():
            results.append(forward_and_backward() == expected)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        statuses = [run_in_child(expected) for _ in range(20)]
    finally:
        stop.set()
        thread.join()
    assert statuses == [0] * 20
    assert all(results)
    assert results


def fork_of_a_fork() -> None:
    expected = forward_and_backward()
    child = os.fork()
    if child == 0:
        same = forward_and_backward() == expected
        os._exit(0 if same and run_in_child(expected) == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _task(_: int) -> list[bytes]:
    return forward_and_backward()


def multiprocessing_by_fork() -> None:
    expected = forward_and_backward()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert all(result == expected for result in pool.map(_task, range(12)))
    assert forward_and_backward() == expected


def eight_threads_at_once() -> None:
    """Each has its own shape, some too small for the pool, and the thread count changes."""
    layernorm.set_num_threads(3)
    shapes = [
        (1, 768),
        (7, 65),
        (501, 769),
        (1009, 256),
        (64, 64),
        (3, 768),
        (2003, 31),
        (997, 768),
    ]
    inputs = [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]
    expected = [forward_and_backward(x) for x in inputs]
    wrong: list[tuple[int, ...]] = []
    start = threading.Barrier(len(inputs) + 1)

    def compute(x: np.ndarray, bits: list[bytes]) -> None:
        start.wait()
        for _ in range(60):
            if forward_and_backward(x) != bits:
                wrong.append(x.shape)

    threads = [
        threading.Thread(target=compute, args=pair) for pair in zip(inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    start.wait()
    for count in (1, 2, 4, 3) * 10:
        layernorm.set_num_threads(count)
        time.sleep(0.002)
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def ctrl_c() -> None:
    """Work until interrupted, then once more."""
    # Background jobs of a shell ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    expected = forward_and_backward()
    try:
        print("working", flush=True)
        while True:
            forward_and_backward()
    except KeyboardInterrupt:
        assert forward_and_backward() == expected
        print("interrupted", flush=True)


def signals_reach_the_main_thread_only() -> None:
    """A handler runs while calls go on, and the calls stay right."""
    expected, seen = forward_and_backward(), []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(threading.current_thread()))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    while len(seen) < 20:
        assert forward_and_backward() == expected
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert set(seen) == {threading.main_thread()}


def exit_while_a_thread_computes() -> None:
    forward_and_backward()
    working = threading.Event()

    def compute() -> None:
        while True:
            forward_and_backward()
            working.set()

    threading.Thread(target=compute, daemon=True).start()
    working.wait()


def one_processor() -> None:
    assert layernorm.get_num_threads() == 1
    before = threads_alive()
    forward_and_backward()
    assert threads_alive() == before


def three_threads_by_environment() -> None:
    assert layernorm.get_num_threads() == 3
    before = threads_alive()
    forward_and_backward(np.tile(LARGE, (4, 1)))
    assert threads_alive() == before + 2


def a_worker_leaves_its_callers_processor() -> None:
    """Hold a worker on the caller's processor: the next call that it joins moves it away."""
    layernorm.set_num_threads(2)
    allowed = os.sched_getaffinity(0)
    before = set(os.listdir("/proc/self/task"))
    forward_and_backward(np.tile(LARGE, (4, 1)))
    (worker,) = map(int, set(os.listdir("/proc/self/task")) - before)
    shared = min(allowed)
    os.sched_setaffinity(0, {shared})
    os.sched_setaffinity(worker, {shared})
    deadline = time.monotonic() + 30
    while os.sched_getaffinity(worker) != allowed - {shared}:
        assert time.monotonic() < deadline, os.sched_getaffinity(worker)
        forward_and_backward(np.tile(LARGE, (16, 1)))


def no_threads_for_small_inputs() -> None:
    layernorm.set_num_threads(4)
    before = threads_alive()
    for shape in ((1, 768), (16, 768), (64, 64), (2, 16, 8)):
        x = RNG.standard_normal(shape).astype(np.float32)
        axis = 1 if len(shape) == 3 else -1
        _, stats = ours.layer_norm_forward(x, axis=axis)
        ours.layer_norm_backward(x, x, stats)
        ours.layer_norm(x, axis=axis)
    assert threads_alive() == before


def threads_for_large_inputs() -> None:
    layernorm.set_num_threads(4)
    before = threads_alive()
    ours.layer_norm(np.tile(LARGE, (8, 1)))
    assert threads_alive() == before + 3


def sub_interpreter() -> None:
    """What an import raises there, on standard output."""
    code = "import layernorm"
    if sys.version_info >= (3, 14):
        from concurrent import interpreters

        try:
            interpreters.create().exec(code)
        except interpreters.ExecutionFailed as raised:
            print(raised)
    elif sys.version_info >= (3, 13):
        import _interpreters

        print(_interpreters.exec(_interpreters.create(), code).formatted)
    else:
        import _xxsubinterpreters

        try:
            _xxsubinterpreters.run_string(_xxsubinterpreters.create(), code)
        except _xxsubinterpreters.RunFailedError as raised:
            print(raised)
    assert forward_and_backward()


def no_gil() -> None:
    assert not sys._is_gil_enabled()


def one_call_of_each_kind() -> None:
    """On an emulated processor: no illegal instruction. Prints the instruction set that ran."""
    import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by it

    for dtype in ("float16", "bfloat16", "float32", "float64"):
        x, dy, residual = RNG.standard_normal((3, 5, 37)).astype(dtype)
        weight, bias = RNG.standard_normal((2, 37)).astype(dtype)
        near = {"rtol": 0, "atol": 0.1 if dtype == "bfloat16" else 0.02}
        for axis in (-1, 0):
            parameters = (weight, bias) if axis == -1 else (None, None)
            y, stats = ours.layer_norm_forward(x, *parameters, axis=axis)
            dx = ours.layer_norm_backward(dy, x, stats, parameters[0])[0]
            expected = reference.layer_norm(x, *parameters, axis=axis)
            expected_dx = reference.layer_norm_backward(dy, x, parameters[0], axis=axis)[0]
            np.testing.assert_allclose(y.astype(float), expected, **near)
            np.testing.assert_allclose(dx.astype(float), expected_dx, **near)
        total = ours.rms_norm(x, weight, residual=residual)[1]
        np.testing.assert_allclose(total.astype(float), x.astype(float) + residual, **near)
        assert np.isfinite(ours.layer_norm(x, gate=dy).astype(float)).all()
        assert ours.quantized_layer_norm(x)[0].any()
    print(_native.isa())


if __name__ == "__main__":
    globals()[sys.argv[1]]()
