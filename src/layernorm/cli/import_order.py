"""The order in which TensorFlow and Triton can be imported into one process."""

import contextlib
import importlib.util


def import_triton_before_tensorflow() -> None:
    """Import Triton now if both are installed; torch.compile and torch.func would import it later.

    Each has its own LLVM. If TensorFlow's is loaded first, loading Triton's ends the process:
    "inconsistency in registered CommandLine options" (tensorflow-cpu 2.21.0, triton 3.9.0).
    """
    if importlib.util.find_spec("tensorflow") is not None:
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
