"""Plants faults in the C++ and shows that the tests catch each.

    python tests/cpp_faults [--list] [--only WORD...] [--jobs N]

The .toml files here describe the faults: a statement or an expression in a file under native/, what
replaces it, and the test that must then fail, a program of native/tests or arguments of pytest. All
faults are compiled into one copy of the tree, build/faults, each behind a switch, and the tests run
with one fault switched on at a time. A test that crashes or hangs has failed.
"""

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "faults"

SWITCH = """
#include <cstdlib>
inline const int planted_fault =
    std::getenv("PLANTED_FAULT") ? std::atoi(std::getenv("PLANTED_FAULT")) : 0;
"""

# For a fault in the code of one instruction set, everything is compiled for that one.
ISA_FLAGS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c",
}


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    test: str
    isa: str = "baseline"

    @property
    def replacement(self) -> str:
        if self.old.endswith((";", "}")):
            return f"if ({self.is_on}) {{ {self.new} }} else {{ {self.old} }}"
        return f"({self.is_on} ? ({self.new}) : ({self.old}))"

    @property
    def is_on(self) -> str:
        return f"planted_fault == {FAULTS.index(self) + 1}"


@dataclass(frozen=True)
class Test:
    command: str
    isa: str

    @property
    def is_python(self) -> bool:
        return ".py" in self.command

    @property
    def target(self) -> str:
        return "_native" if self.is_python else self.command


FAULTS = [
    Fault(**fault)
    for path in sorted(Path(__file__).parent.glob("*.toml"))
    for fault in tomllib.loads(path.read_text())["fault"]
]


def plant(file: str, text: str) -> str:
    """The text of a file under native/ with all of its faults."""
    for fault in FAULTS:
        if fault.file == file:
            count = text.count(fault.old)
            if count != 1:
                sys.exit(
                    f"native/{file} has moved on: bring the fault {fault.name!r} up to date. "
                    f"It replaces this text, which is there {count} times:\n{fault.old}"
                )
            text = text.replace(fault.old, fault.replacement)
    return text


def planted_files() -> dict[str, bytes]:
    """The files with faults, by their path in the tree."""
    files = {}
    for file in dict.fromkeys(fault.file for fault in FAULTS):
        path = ROOT / "native" / file
        files[f"native/{file}"] = plant(file, path.read_text() if path.exists() else "").encode()
    return files


def update_copy() -> None:
    """Copy the files that differ, so that little is built again."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")
    contents = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    contents |= planted_files()
    contents["planted_fault.h"] = SWITCH.encode()
    for name, content in contents.items():
        to = COPY / name
        if not to.exists() or to.read_bytes() != content:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(content)
    for folder in ("native", "src", "tests"):
        for path in (COPY / folder).rglob("*.*"):
            if path.is_file() and str(path.relative_to(COPY)) not in contents:
                path.unlink()


def check_tests() -> None:
    for fault in FAULTS:
        name, _, word = fault.test.partition(" -k ")
        path = ROOT / (name if name.endswith(".py") else f"native/tests/{name}.cc")
        if not path.exists() or (word and not re.search(rf"def test\w*{word}", path.read_text())):
            sys.exit(f"The test of the fault {fault.name!r} is gone: {fault.test}")


def environment(**variables: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(COPY / "src")} | variables


def build(isa: str, targets: set[str], jobs: int) -> None:
    folder = COPY / "build" / isa
    if not (folder / "build.ninja").exists():
        shutil.rmtree(folder, ignore_errors=True)
        call(
            *["cmake", "-S", COPY, "-B", folder, "-G", "Ninja", "--log-level=WARNING"],
            *["-DLAYERNORM_TESTS=ON", "-DLAYERNORM_BASELINE_ONLY=ON"],
            *[f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_FLAGS_RELEASE=-O0"],
            f"-DCMAKE_CXX_FLAGS=-w -include {COPY}/planted_fault.h {ISA_FLAGS[isa]}",
        )
    call("cmake", "--build", folder, "--parallel", jobs, "--target", *sorted(targets))
    if "_native" in targets:
        for built in folder.glob("_native*"):
            link = COPY / "src" / "layernorm" / built.name
            link.unlink(missing_ok=True)
            link.symlink_to(built)


def call(*command) -> None:
    done = subprocess.run([str(part) for part in command], env=environment())
    if done.returncode != 0:
        sys.exit("The faults do not compile.")


def run(test: Test, fault: int, seconds: float) -> str:
    """Run a test for so long at most: "passed", or how it failed."""
    if test.is_python:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += test.command.split()
    else:
        command = [str(COPY / "build" / test.isa / "native" / "tests" / test.command)]
    process = subprocess.Popen(
        command,
        cwd=COPY,
        env=environment(PLANTED_FAULT=str(fault)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    hung = threading.Event()

    def stop() -> None:
        hung.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    # The first failure of a program is enough.
    failed = any(line.startswith("FAILED") for line in process.stderr)
    if failed:
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    timer.cancel()
    if failed:
        return "failed"
    if hung.is_set():
        return "hung"
    return "passed" if code == 0 else "crashed" if code < 0 else "failed"


def is_available(isa: str) -> bool:
    if isa == "baseline":
        return True
    cpuinfo = Path("/proc/cpuinfo")
    feature = {"avx2": "avx2", "avx512": "avx512dq"}[isa]
    return platform.machine() == "x86_64" and cpuinfo.exists() and feature in cpuinfo.read_text()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--list", action="store_true", help="list the faults, and stop")
    arguments.add_argument("--only", nargs="+", default=[], help="faults with one of these words")
    arguments.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = arguments.parse_args()
    planted_files()
    check_tests()
    faults = [
        fault
        for fault in FAULTS
        if not options.only or any(word in f"{fault.file} {fault.name}" for word in options.only)
    ]
    if options.list:
        for fault in faults:
            print(f"{fault.file:34} {fault.name} ({fault.test})")
        print(f"{len(faults)} faults")
        return

    begin = time.monotonic()
    skipped = [fault for fault in faults if not is_available(fault.isa)]
    faults = [fault for fault in faults if fault not in skipped]
    tests = list(dict.fromkeys(Test(fault.test, fault.isa) for fault in faults))
    update_copy()
    for isa in dict.fromkeys(test.isa for test in tests):
        build(isa, {test.target for test in tests if test.isa == isa}, options.jobs)

    def run_unmodified(test: Test) -> tuple[str, float]:
        start = time.monotonic()
        return run(test, 0, 1800), time.monotonic() - start

    missed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        limits = {}
        for test, (outcome, seconds) in zip(tests, pool.map(run_unmodified, tests), strict=True):
            print(
                f"{outcome:8} {seconds:4.0f} s without a fault: {test.command} ({test.isa})",
                flush=True,
            )
            if outcome != "passed":
                sys.exit(f"{test.command} fails without a fault")
            limits[test] = 60 + 5 * seconds

        def run_with(fault: Fault) -> str:
            test = Test(fault.test, fault.isa)
            return run(test, FAULTS.index(fault) + 1, limits[test])

        for fault, outcome in zip(faults, pool.map(run_with, faults), strict=True):
            if outcome == "passed":
                missed.append(fault)
                outcome = "MISSED"
            print(f"{outcome:8} {fault.file}: {fault.name} ({fault.test})", flush=True)

    for fault in skipped:
        print(f"skipped  {fault.file}: {fault.name}: this processor has no {fault.isa}")
    minutes = (time.monotonic() - begin) / 60
    print(f"{len(faults)} faults, {len(faults) - len(missed)} caught, in {minutes:.1f} minutes")
    if missed:
        sys.exit("Not caught: " + "; ".join(fault.name for fault in missed))


if __name__ == "__main__":
    main()
