"""Connects the compiled module to PyTorch's C API, once, when the front end is imported."""

import sys

import torch
from torch.autograd import forward_ad, profiler

from layernorm import _native

_LIBRARIES = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}


def load() -> None:
    """Define our operators, and enable the fast path, which bypasses the dispatcher.

    Raises: ImportError for a PyTorch older than 2.10.
    """
    _native.torch_load(
        _LIBRARIES.get(sys.platform, "libtorch_cpu.so"),
        {
            "tensor_type": torch.Tensor,
            "parameter_type": torch.nn.Parameter,
            "is_neg": torch.Tensor.is_neg,
            # Each tells whether something observes or transforms the operators that run.
            "watchers": (
                torch._C._are_functorch_transforms_active,
                torch._C._len_torch_dispatch_stack,
                torch._C._len_torch_function_stack,
                torch._C._is_tracing,
            ),
            "forward_mode": vars(forward_ad),
            "profiler": vars(profiler),
            "exchange": getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
        },
    )


load()
