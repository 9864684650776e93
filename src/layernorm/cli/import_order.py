"""TensorFlow and Triton in one process."""

import contextlib
import importlib.util


def import_triton_before_tensorflow() -> None:
    """Import Triton now, where both are installed; torch.compile and torch.func would later.

    Each has an LLVM of its own. TensorFlow's, loaded first, ends the process when Triton's comes:
    "inconsistency in registered CommandLine options" (tensorflow-cpu 2.21.0, triton 3.9.0).
    """
    if importlib.util.find_spec("tensorflow") is not None:
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
