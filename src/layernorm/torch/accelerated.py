"""Our kernels under PyTorch's own operators, for models that stay as they are."""

import threading
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor

from layernorm import _native
from layernorm.torch import c_api, fallback, functional
from layernorm.torch.autograd import record_fast_path
from layernorm.torch.gpu import operators as gpu

assert c_api, "importing it looks up PyTorch's functions"

_lock = threading.Lock()
_holders = 0
_rms_norm_kernels: torch.library.Library | None = None


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
    """Run every layer norm and RMS norm of the process, in any model, on our kernels.

    Layer norm: the kernels of PyTorch's `native_layer_norm` and its backward are replaced, on the
    CPU and GPUs, under PyTorch's own autograd, forward mode, vmap and DTensor rules. They take
    float16, bfloat16, float32 and float64; other types raise RuntimeError, where PyTorch raises
    NotImplementedError. GPUs need Triton. PyTorch warns once a process that a kernel is overridden,
    which is intended.

    RMS norm: `torch.nn.functional.rms_norm`, which PyTorch composes of other operators on the CPU,
    becomes `layernorm.torch.rms_norm` for CPU tensors. Calls that it does not take, and transforms,
    tracers, exporters and modes, get PyTorch's composition, as without `accelerate`.

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
            _override_rms_norm(by > 0)
        _holders += by


def _override_rms_norm(active: bool) -> None:
    global _rms_norm_kernels
    if _rms_norm_kernels is not None:
        _rms_norm_kernels._destroy()
        _rms_norm_kernels = None
    if active:
        _rms_norm_kernels = torch.library.Library("aten", "IMPL")
        # Before autograd, which needs no rule for the operator then; and, in inference mode, which
        # skips autograd, at the last stop before the kernels of a device. A kernel for the CPU
        # itself would keep PyTorch's exporters from taking the operator apart.
        for stop in ("AutogradCPU", "BackendSelect"):
            _rms_norm_kernels.impl("rms_norm", _rms_norm, stop)


def _rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    y = _native.torch_try_forward(x, weight, None, normalized_shape, eps, False, False)
    if y is not None and not (type(y) is tuple and x.is_inference()):
        return record_fast_path(x, weight, None, y) if type(y) is tuple else y
    if torch._C._are_functorch_transforms_active() or not (
        x.device.type == "cpu"
        and fallback.serves(x, normalized_shape, weight, None, eps, centered=False)
    ):
        return torch.ops.aten.rms_norm.default.decompose(x, normalized_shape, weight, eps)
    return functional.norm(x, normalized_shape, weight, None, eps, None, centered=False)
