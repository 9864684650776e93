"""Build wheels for other systems than this one, with compilers from packages: no container.

For glibc, GCC compiles, and Clang of the package ziglang links against an old glibc; libstdc++ is
linked in, the unwinder not (native/bindings/gil.h). For the others, Clang does both. For Windows,
Python's headers and a library that names python3.dll are made here.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import NamedTuple

import abi3info
import ziglang

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "wheels"
ZIG = Path(ziglang.__file__).with_name("zig")


class Target(NamedTuple):
    """A system, as CMake, ziglang and wheels call it."""

    system: str
    processor: str
    zig: str
    tag: str
    gcc: str = ""


TARGETS = {
    "linux-x86_64": Target(
        *("Linux", "x86_64", "x86_64-linux-gnu.2.28"),
        *("manylinux_2_28_x86_64", "x86_64-linux-gnu-g++"),
    ),
    "linux-aarch64": Target(
        *("Linux", "aarch64", "aarch64-linux-gnu.2.28"),
        *("manylinux_2_28_aarch64", "aarch64-linux-gnu-g++"),
    ),
    "musl-x86_64": Target("Linux", "x86_64", "x86_64-linux-musl", "musllinux_1_2_x86_64"),
    "musl-aarch64": Target("Linux", "aarch64", "aarch64-linux-musl", "musllinux_1_2_aarch64"),
    "macos-x86_64": Target("Darwin", "x86_64", "x86_64-macos.11.0", "macosx_11_0_x86_64"),
    "macos-arm64": Target("Darwin", "arm64", "aarch64-macos.11.0", "macosx_11_0_arm64"),
    "windows-x86_64": Target("Windows", "AMD64", "x86_64-windows-gnu", "win_amd64"),
}

# Of what Python's pyconfig.h says on 64-bit Windows, what the stable ABI's headers ask.
PYCONFIG = """
#define MS_WINDOWS
#define MS_WIN64
#define NT_THREADS
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL
#define HAVE_SSIZE_T 1
#define HAVE_WCHAR_H 1
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_VOID_P 8
#define SIZEOF_WCHAR_T 2
"""


def run(*command: object, **environment: str) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed: {shlex.join(map(str, command))}")
    return done.stdout


def zig_command(name: str, *arguments: str) -> Path:
    """Write a program that calls one of zig's: CMake wants a single file.

    zig's linker crashes when it makes a bundle for macOS, whose dynamic libraries Python loads too.
    """
    program = BUILD / "bin" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join([str(ZIG), *arguments])
    program.write_text(f'#!/bin/bash\nexec {command} "${{@/#-bundle/-dynamiclib}}"\n')
    program.chmod(0o755)
    return program


def numpy_headers(target: Target) -> Path:
    """Take the headers from NumPy's wheel for this system."""
    folder = BUILD / "numpy" / target.tag
    shutil.rmtree(folder, ignore_errors=True)
    run(
        *(sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--only-binary=:all:"),
        *("-c", "constraints.txt", "--platform", target.tag, "--python-version", "3.11"),
        *("-d", folder, "numpy"),
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if "/_core/include/" in n])
    return folder / "numpy" / "_core" / "include"


def make_python_for_windows(folder: Path) -> dict[str, object]:
    """Make the headers that Python has on Windows, and the library that names python3.dll."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sysconfig.get_path("include"), folder)  # pyconfig.h alone differs
    (folder / "pyconfig.h").write_text(PYCONFIG)
    names = [each.name for each in abi3info.FUNCTIONS]
    names += [f"{each.name} DATA" for each in abi3info.DATAS]
    # CMake wants to see a version in the library's name, and DLLs beside it.
    release = f"python{sys.version_info.major}{sys.version_info.minor}"
    exports, library = folder / "python3.def", folder / f"{release}.lib"
    for dll in ("python3.dll", f"{release}.dll"):
        (folder / dll).touch()
    exports.write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *names, ""]))
    run(ZIG, "dlltool", "-m", "i386:x86-64", "-d", exports, "-l", library)
    return {
        "Python_INCLUDE_DIR": folder,
        "Python_LIBRARY": library,
        "Python_SABI_LIBRARY": library,
    }


def definitions(name: str, target: Target) -> dict[str, object]:
    """Say what CMake is told of the target."""
    compiler = zig_command(f"{name}-c++", "c++", "-target", target.zig, "-mcpu=baseline")
    result: dict[str, object] = {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": target.processor,
        "CMAKE_CXX_COMPILER": target.gcc or compiler,
        "Python_NumPy_INCLUDE_DIR": numpy_headers(target),
        "LAYERNORM_WERROR": "ON",
    }
    if target.gcc:
        linker = zig_command(f"{name}-cc", "cc", "-target", target.zig)  # c++ adds its libc++
        exports = BUILD / "exports.map"
        exports.write_text("{ global: PyInit__native; local: *; };\n")
        runtime = [
            run(target.gcc, f"-print-file-name={each}").strip()
            for each in ("libstdc++.a", "libgcc_s.so.1", "libgcc.a")
        ]
        result["CMAKE_CXX_CREATE_SHARED_MODULE"] = (
            f"{linker} -shared -s -Wl,--gc-sections -Wl,--version-script={exports} -o <TARGET> "
            f"<OBJECTS> <LINK_LIBRARIES> {' '.join(runtime)} -lm -lpthread -ldl"
        )
    else:
        result["CMAKE_AR"] = zig_command("ar", "ar")
        result["CMAKE_RANLIB"] = zig_command("ranlib", "ranlib")
    if target.system == "Darwin":
        result["CMAKE_OSX_SYSROOT"] = "/"
        result["CMAKE_OSX_DEPLOYMENT_TARGET"] = ""  # zig's target names it
    elif not target.gcc:
        result["CMAKE_MODULE_LINKER_FLAGS"] = "-s"
    if target.system == "Windows":
        result |= make_python_for_windows(BUILD / "python")
    return result


def build(name: str, output: Path) -> Path:
    """Build one wheel."""
    target = TARGETS[name]
    options = [f"-Ccmake.define.{key}={value}" for key, value in definitions(name, target).items()]
    made = BUILD / name
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The dates inside the wheel: two builds of a commit are the same.
    date = run("git", "log", "-1", "--format=%ct").strip()
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", made),
        *(f"-Cbuild-dir={BUILD / name / 'cmake'}", *options),
        SOURCE_DATE_EPOCH=date,
        PATH=path,
    )
    (wheel,) = made.glob("*-linux_*.whl")
    tagged = run(
        *(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", target.tag, wheel),
        SOURCE_DATE_EPOCH=date,
    ).strip()
    if target.tag.startswith("manylinux"):
        shown = run("auditwheel", "show", made / tagged, PATH=path)
        (needed,) = re.findall(r'tag:\s+"manylinux_2_(\d+)_', shown)
        if int(needed) > 28:
            sys.exit(shown)
    return (made / tagged).rename(output / tagged)


def main() -> None:
    """Build the wheels that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "wheelhouse")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for name in given.targets or TARGETS:
        print(build(name, given.output).name, flush=True)


if __name__ == "__main__":
    main()
