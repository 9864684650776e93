"""Tries random problems in every front end, and judges the results by the oracle.

    python tests/soak [--minutes N] [--cases N] [--seed N] [--frameworks NAME,NAME] [--jobs N]

Each case is drawn from a seed: the run's seed plus the case's number. So
`--seed SEED --cases 1 --frameworks NAME` tries a case again by itself. What fails is shrunk, and
printed as a line for a test, with the observed and the allowed error:

    check(Case(framework='torch', dtype='bfloat16', ...))

`check` is in judge.py and `Case` in soak_case.py; both need tests/soak and tests/support in
sys.path. The exit status is 1 if a case was wrong, or if a process crashed or hung.
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# How much of the time each gets.
SHARES = {
    **{"numpy": 4, "torch": 4, "jax": 2, "tensorflow": 2},
    **{"keras_tensorflow": 1, "keras_jax": 1, "keras_torch": 1},
}
SECONDS_OF_PROGRESS = 20
MOST_PRINTED = 30


class Soak:
    """A run: which cases have been handed out, and what has come of them."""

    def __init__(self, frameworks: list[str], seed: int, cases: int | None, minutes: float) -> None:
        self.seed = seed
        self.end = time.time() + 60 * minutes
        self.cases = cases
        self.handed_out = 0
        self.left = dict.fromkeys(frameworks, cases or sys.maxsize)
        self.seconds = dict.fromkeys(frameworks, 0.0)
        self.tried: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.memory: Counter[str] = Counter()  # MiB, the most of any process
        self.lines: set[str] = set()
        self.running: Counter[str] = Counter()
        self.lock = threading.Lock()

    def run(self, jobs: int) -> None:
        stop = threading.Event()
        reporter = threading.Thread(target=self.report_progress, args=(stop,))
        reporter.start()
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(self.work) for _ in range(jobs)]:
                done.result()
        stop.set()
        reporter.join()

    def work(self) -> None:
        """Run one process after the other."""
        while (batch := self.next_batch()) is not None:
            framework, first, count = batch
            start = time.time()
            worker = Path(__file__).with_name("worker.py")
            command = [sys.executable, worker, framework, first, count, self.end]
            tried = self.watch([str(part) for part in command], framework, first)
            with self.lock:
                self.running[framework] -= 1
                self.seconds[framework] += time.time() - start
                self.left[framework] -= tried

    def next_batch(self) -> tuple[str, int, int] | None:
        """Choose the framework that is furthest behind its share, and its next seeds."""
        with self.lock:
            waiting = [name for name, left in self.left.items() if left > 0]
            if self.cases:
                waiting = [name for name in waiting if not self.running[name]]
            if not waiting or time.time() > self.end:
                return None
            framework = min(
                waiting,
                key=lambda name: (self.running[name], self.seconds[name] / SHARES[name]),
            )
            self.running[framework] += 1
            first = self.seed + self.handed_out
            # With --cases, every framework starts at the run's seed.
            if self.cases:
                return framework, self.seed + self.tried[framework], self.left[framework]
            self.handed_out += 100_000
            return framework, first, 100_000

    def watch(self, command: list[str], framework: str, first: int) -> int:
        """Run a worker, and take what it reports; return how many cases it tried."""
        tried, seed = 0, first
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            for line in process.stdout:
                word, _, value = line.strip().partition(" ")
                if word == "case":
                    seed = int(value)
                    tried += 1
                    self.tried[framework] += 1
                elif word == "wrong":
                    self.add_wrong(framework, **json.loads(value))
                else:
                    self.memory[framework] = max(self.memory[framework], int(value))
            code = process.wait()
            if code != 0:
                errors.seek(0)
                message = f"the process ended with {code}\n{errors.read()[-3000:]}"
                self.add_wrong(framework, seed, f"draw({framework!r}, {seed})", message)
                tried = max(tried, 1)
        return tried

    def add_wrong(self, framework: str, seed: int, case: str, message: str) -> None:
        with self.lock:
            self.wrong[framework] += 1
            if case in self.lines or len(self.lines) >= MOST_PRINTED:
                return
            self.lines.add(case)
        print(f"\nWRONG, {framework}, seed {seed}: {message}\n    check({case})\n", flush=True)

    def report_progress(self, stop: threading.Event) -> None:
        start = time.time()
        while not stop.wait(SECONDS_OF_PROGRESS):
            counts = ", ".join(f"{name} {count}" for name, count in self.tried.items())
            print(
                f"{time.time() - start:5.0f} s: {self.tried.total()} cases, "
                f"{self.wrong.total()} wrong ({counts})",
                flush=True,
            )

    def table(self) -> str:
        rows = [f"{'':18}{'cases':>9}{'wrong':>7}{'seconds':>9}{'MiB':>7}"]
        for name, seconds in self.seconds.items():
            counts = f"{self.tried[name]:9}{self.wrong[name]:7}{seconds:9.0f}"
            rows.append(f"{name:18}{counts}{self.memory[name]:7}")
        rows.append(f"{'all':18}{self.tried.total():9}{self.wrong.total():7}")
        return "\n".join(rows)


def is_installed(framework: str) -> bool:
    packages = ("ml_dtypes", *framework.split("_"))
    return all(importlib.util.find_spec(package) is not None for package in packages)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--cases", type=int, help="for each framework; then stop")
    arguments.add_argument("--seed", type=int, help="of the run, 0 or more; else a random one")
    arguments.add_argument("--frameworks", help=f"of {','.join(SHARES)}; else those installed")
    arguments.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = arguments.parse_args()
    frameworks = [name for name in SHARES if is_installed(name)]
    if options.frameworks:
        frameworks = options.frameworks.split(",")
        if not set(frameworks) <= set(SHARES):
            arguments.error(f"--frameworks is {options.frameworks}, expected of {','.join(SHARES)}")
    seed = random.randrange(10**9) if options.seed is None else options.seed
    print(f"seed {seed}: {', '.join(frameworks)}", flush=True)
    soak = Soak(frameworks, seed, options.cases, options.minutes)
    soak.run(options.jobs)
    print(soak.table())
    sys.exit(1 if soak.wrong else 0)


if __name__ == "__main__":
    main()
