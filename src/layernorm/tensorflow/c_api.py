"""Connects the compiled module to TensorFlow's C interface, once, at the front end's import."""

import functools
import sys

import tensorflow as tf

from layernorm import _native

_LIBRARIES = {
    "darwin": "libtensorflow_framework.2.dylib",
    "win32": "_pywrap_tensorflow_common.dll",
}


def _load() -> str | None:
    try:
        _native.tensorflow_load(_LIBRARIES.get(sys.platform, "libtensorflow_framework.so.2"))
    except ImportError as error:
        return str(error)
    return None


missing: str | None = _load()
"""Why the kernels cannot be used, or None. Without them, the formula computes everything."""


@functools.cache
def serves() -> bool:
    """Tell whether the kernels compute: only on machines without other devices than CPUs.

    Elsewhere an operation with kernels for the CPU alone would copy its tensors off their device.
    The first call also passes TensorFlow's bound on threads to the kernels.
    """
    if missing is not None:
        return False
    _native.tensorflow_bound_threads(tf.config.threading.get_intra_op_parallelism_threads())
    return all(each.device_type == "CPU" for each in tf.config.list_physical_devices())
