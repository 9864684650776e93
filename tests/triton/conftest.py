"""Where the kernels run: in Triton's interpreter if TRITON_INTERPRET=1, else on a GPU, if any.

With LAYERNORM_EMULATE_PTX=1, they are compiled for a GPU, and the PTX is emulated on the CPU.

The interpreter is switched on where Triton is imported, for the whole process, so its tests have a
process of their own, started by tests/triton/test_triton_interpreted.py.
"""

import importlib.util
import os
import warnings
from pathlib import Path

import pytest

NAMES = ("contract", "each_kernel", "gate", "members", "quantized", "residual", "same_bits")
RUNS_KERNELS = {f"test_triton_{name}.py" for name in (*NAMES, "torch")}
ON_THE_CPU = "1" in (os.environ.get("TRITON_INTERPRET"), os.environ.get("LAYERNORM_EMULATE_PTX"))


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = None
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        needs_gpu = item.path.name == "test_triton_gpu.py"
        if item.path.name in RUNS_KERNELS or needs_gpu:
            item.add_marker(pytest.mark.gpu)
            # NumPy's warnings in the interpreter, where a row leaves the range of its type
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
            if needs_gpu or not ON_THE_CPU:
                skip = skip or pytest.mark.skipif(not _has_gpu(), reason="no GPU here")
                item.add_marker(skip)
        elif ON_THE_CPU:
            item.add_marker(pytest.mark.skip(reason="compiles, which the interpreter does not"))


@pytest.fixture
def small_tiles(monkeypatch):
    """Make tiles small, so that short rows are treated as long ones: the interpreter is slow."""
    from layernorm.triton import launch_config

    def forget_tiles():
        launch_config.row_tile.cache_clear()
        launch_config.long_row_tile.cache_clear()

    with monkeypatch.context() as small:
        small.setattr(launch_config, "_FEW_ELEMENTS", 128)
        small.setattr(launch_config, "_MOST_ELEMENTS", 256)
        small.setattr(launch_config, "_MOST_BACKWARD_ELEMENTS", 128)
        small.setattr(launch_config, "_MOST_ELEMENTS_WITH_SUMS", 64)
        small.setattr(launch_config, "_BLOCK_ELEMENTS", 128)
        small.setattr(launch_config, "_MOST_PARTIALS", 64)
        forget_tiles()
        yield
    forget_tiles()


@pytest.fixture
def in_place_of_the_cpu():
    """Register the GPU kernels for the CPU, where they are interpreted or emulated."""
    from layernorm.torch.gpu import operators as gpu

    if not ON_THE_CPU:
        pytest.skip("for kernels on the CPU")
    with warnings.catch_warnings():  # PyTorch warns once that a kernel is overridden
        warnings.simplefilter("ignore")
        libraries = [gpu.implement(name, "cpu") for name in ("layernorm", "aten")]
    yield
    for library in libraries:
        library._destroy()
