"""Our kernels under PyTorch's own operator, for models that nobody edits."""

import threading
from types import TracebackType

from layernorm import _native
from layernorm.torch import c_api
from layernorm.torch.gpu import operators as gpu

assert c_api, "importing it looks up PyTorch's functions"

_lock = threading.Lock()
_holders = 0


class Acceleration:
    """What `accelerate` returns: our kernels are in place until `undo`, or the end of a `with`."""

    def __init__(self) -> None:
        self._active = True
        _change(1)

    def undo(self) -> None:
        """Give PyTorch its kernels back, unless another `accelerate` is still in force."""
        if self._active:
            self._active = False
            _change(-1)

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def accelerate() -> Acceleration:
    """Put our kernels under PyTorch's `native_layer_norm` and its backward, on the CPU and GPUs.

    Every layer norm of the process, of any model, then runs them, with PyTorch's own autograd,
    forward mode, vmap and DTensor rules. Only float16, bfloat16, float32 and float64 are
    served: other types raise RuntimeError, where PyTorch raises its NotImplementedError. GPUs are
    served where Triton is installed.
    PyTorch prints one warning a process, that a kernel is overridden: that is what was asked for.

    Args: none.
    Returns: an object with `undo()`, which can also stand in a `with` statement:
        `with accelerate(): model(x)`. In a process that never calls `undo`, it lasts to the end.
    Raises: RuntimeError where PyTorch refuses.
    """
    return Acceleration()


def _change(by: int) -> None:
    global _holders
    with _lock:
        if _holders + by == 0 or (_holders == 0 and by > 0):
            _native.torch_override_aten(by > 0)
            gpu.override_aten(by > 0)
        _holders += by
