"""Our kernels under PyTorch's own operator, for models that stay as they are."""

import threading
from types import TracebackType

from layernorm import _native
from layernorm.torch import c_api
from layernorm.torch.gpu import operators as gpu

assert c_api, "importing it looks up PyTorch's functions"

_lock = threading.Lock()
_holders = 0


class Acceleration:
    """The result of `accelerate`: our kernels are in use until `undo`, or the end of a `with`."""

    def __init__(self) -> None:
        self._active = True
        _change(1)

    def undo(self) -> None:
        """Restore PyTorch's own kernels, unless another `accelerate` is still active."""
        with _lock:
            was_active, self._active = self._active, False
        if was_active:
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
    """Replace the kernels of PyTorch's `native_layer_norm` and its backward, on the CPU and GPUs.

    Every layer norm of the process, in any model, then runs our kernels, with PyTorch's own
    autograd, forward mode, vmap and DTensor rules. They take float16, bfloat16, float32 and
    float64; other types raise RuntimeError, where PyTorch raises NotImplementedError. GPUs need
    Triton. PyTorch warns once a process that a kernel is overridden, which is intended.

    Args: none.
    Returns: an object with `undo()`, also a context manager: `with accelerate(): model(x)`.
        Without `undo`, it stays active until the process ends.
    Raises: RuntimeError if PyTorch does.
    """
    return Acceleration()


def _change(by: int) -> None:
    global _holders
    with _lock:
        if _holders + by == 0 or (_holders == 0 and by > 0):
            _native.torch_override_aten(by > 0)
            gpu.override_aten(by > 0)
        _holders += by
