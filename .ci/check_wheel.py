"""Stop if a wheel holds what it should not, or lacks what it should have; say how large it is."""

import sys
import zipfile
from email import message_from_bytes
from pathlib import Path, PurePosixPath

PYTHON = {".py", ".pyi"}
COMPILED = {".so", ".pyd"}


def problems(wheel: zipfile.ZipFile) -> list[str]:
    """Describe what is wrong with the contents and the requirements."""
    paths = [PurePosixPath(name) for name in wheel.namelist() if not name.endswith("/")]
    (about,) = {path.parts[0] for path in paths if path.parts[0].endswith(".dist-info")}
    found = []
    for path in paths:
        if path.parts[0] not in ("layernorm", about):
            found.append(f"{path} is outside the package")
        elif path.parts[0] == "layernorm" and path.suffix not in PYTHON | COMPILED | {".typed"}:
            found.append(f"{path} is neither Python nor compiled")
    compiled = [str(path) for path in paths if path.suffix in COMPILED]
    if len(compiled) != 1 or not compiled[0].startswith("layernorm/_native."):
        found.append(f"expected one compiled module, layernorm/_native, and there are {compiled}")
    for needed in ("layernorm/py.typed", "layernorm/_native.pyi", f"{about}/licenses/LICENSE"):
        if PurePosixPath(needed) not in paths:
            found.append(f"{needed} is missing")
    metadata = message_from_bytes(wheel.read(f"{about}/METADATA"))
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    if [each.split(">")[0].strip() for each in required] != ["numpy"]:
        found.append(f"expected to require NumPy alone, not {required}")
    return found


def main(file: Path) -> None:
    """Check one wheel."""
    with zipfile.ZipFile(file) as wheel:
        found = problems(wheel)
        compiled = sum(each.file_size for each in wheel.infolist() if "/_native." in each.filename)
    if found:
        sys.exit("\n".join([f"{file.name}:", *found]))
    size = file.stat().st_size / 1e6
    print(f"{file.name}: {size:.2f} MB; unpacked, the compiled module is {compiled / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
