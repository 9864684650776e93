"""Runs tests of other projects twice, with PyTorch's norms and with ours, and compares.

    python tests/foreign_suites --python PYTHON [--suites NAME,NAME] [--ways WAY,WAY]

What else is given goes to pytest. PYTHON is the interpreter of an environment of its own, with
PyTorch, layernorm, pytest, pytest-timeout, parameterized, and the projects:

    pip install torch
    pip install layernorm ml_dtypes pytest pytest-timeout parameterized datasets
    pip install transformers accelerate peft diffusers && pip install --no-deps timm pillow

The tests are in the projects' source distributions, which pip downloads to build/sdists. Model hubs
are not asked, so tests that need one fail with any norm. Where torchvision is not installed, an
empty one is put in its place. norms_of_ours.py says what the ways are. The exit status is 1 if a
test passes with PyTorch's norms only.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SDISTS = HERE.parents[1] / "build" / "sdists"


@dataclass(frozen=True)
class Suite:
    files: tuple[str, ...]
    ways: tuple[str, ...]
    chosen: str = ""  # pytest's -k


SUITES = {
    # Small models with layer norms, without the tests that need weights from a hub.
    "timm": Suite(
        ("tests/test_layers.py", "tests/test_models.py"),
        ("convert", "classes"),
        "(test_layers or test_vit or test_convnext) and not pretrained and not inference",
    ),
    # The tests of other kernels, of compilers and of memory on disk take long.
    "transformers": Suite(
        ("tests/test_ten_models.py",),
        ("convert",),
        "not sdpa and not flash and not flex and not compile and not offload",
    ),
    "accelerate": Suite(
        ("tests/test_big_modeling.py", "tests/test_hooks.py", "tests/test_offload.py"),
        ("classes", "accelerated"),
    ),
    # Most others ask a hub for a model.
    "peft": Suite(("tests/test_custom_models.py",), ("classes", "accelerated"), "LNTuning"),
}

# The common tests import two modules that the source distribution leaves out.
EMPTY_PARTS_OF_TRANSFORMERS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
}


def tests_of(project: str, python: str, folder: Path) -> Path:
    """Return the folder with the source distribution of the project's installed version."""
    asked = f"from importlib.metadata import version; print(version({project!r}))"
    version = subprocess.check_output([python, "-c", asked], text=True).strip()
    archive = SDISTS / f"{project}-{version}.tar.gz"
    if not archive.exists():
        command = [python, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "-d", str(SDISTS), f"{project}=={version}"], check=True)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    tests = folder / f"{project}-{version}" / "tests"
    if project == "transformers":
        for name, text in EMPTY_PARTS_OF_TRANSFORMERS.items():
            (tests / name).parent.mkdir()
            (tests / name).write_text(text)
            (tests / name).with_name("__init__.py").touch()
        shutil.copy(HERE / "ten_models.py", tests / "test_ten_models.py")
    (tests / "__init__.py").touch()  # some leave it out
    # What is tested is what is installed.
    for source in ("src", project):
        shutil.rmtree(tests.parent / source, ignore_errors=True)
    return tests.parent


def outcomes(name: str, way: str, python: str, folder: Path, more: list[str]) -> dict[str, str]:
    """Run the tests; return what became of each."""
    suite = SUITES[name]
    report = folder / f"{way}.xml"
    command = [python, "-m", "pytest", "-q", "-p", "norms_of_ours", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", ".", "--tb=short", f"--junit-xml={report}"]
    command += ["--timeout=120", *more, *suite.files] + (
        ["-k", suite.chosen] if suite.chosen else []
    )
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {"FOREIGN_SUITE": name, "FOREIGN_NORMS": way, "PYTHONPATH": path}
    environment["HF_HUB_OFFLINE"] = "1"
    with open(folder / f"{way}.log", "w") as log:
        subprocess.run(command, cwd=folder, env=os.environ | environment, stdout=log, stderr=log)
    if not report.exists():
        sys.exit(f"pytest has made no report:\n{(folder / f'{way}.log').read_text()[-3000:]}")
    for line in converted(folder / f"{way}.log"):
        print(line, flush=True)
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag: child.get("message", "") for child in case}
        outcome = next(
            (kind for kind in ("failure", "error", "skipped") if kind in kinds), "passed"
        )
        found[f"{case.get('classname')}::{case.get('name')}"] = (
            f"{outcome} {kinds.get(outcome, '')}"
        )
    return found


def converted(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("converted ")]


def count(found: dict[str, str]) -> str:
    counts = Counter(outcome.split()[0] for outcome in found.values())
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))


def compare(name: str, python: str, ways: list[str], more: list[str]) -> bool:
    """Return whether every test that passes with PyTorch's norms passes with ours."""
    same = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = tests_of(name, python, Path(temporary))
        theirs = outcomes(name, "theirs", python, folder, more)
        print(f"{name}, theirs: {count(theirs)}", flush=True)
        for way in ways or SUITES[name].ways:
            found = outcomes(name, way, python, folder, more)
            print(f"{name}, {way}: {count(found)}", flush=True)
            for test, outcome in theirs.items():
                now = found.get(test, "missing")
                if outcome.startswith("passed") and not now.startswith("passed"):
                    same = False
                    print(f"  passes with theirs only: {test}\n    {now[:600]}", flush=True)
                elif now.startswith("passed") and outcome.split()[0] in ("failure", "error"):
                    print(f"  passes with ours only: {test}", flush=True)
    return same


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--python", required=True, help="of the environment with the projects")
    arguments.add_argument("--suites", default=",".join(SUITES))
    arguments.add_argument("--ways", help="in place of each suite's own, separated by commas")
    options, more = arguments.parse_known_args()
    ways = options.ways.split(",") if options.ways else []
    results = [compare(name, options.python, ways, more) for name in options.suites.split(",")]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
