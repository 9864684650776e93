"""Brings TensorFlow and the compiled module together: once, when the front end is imported."""

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
"""Why the kernels are not served, where they are not: the formula then does the work."""


@functools.cache
def serves() -> bool:
    """Tell whether the kernels do the work: on machines with CPUs alone.

    An operation that has kernels for the CPU only would pull its tensors off the other devices. The
    first call also passes TensorFlow's bound on threads on to the kernels.
    """
    if missing is not None:
        return False
    _native.tensorflow_bound_threads(tf.config.threading.get_intra_op_parallelism_threads())
    return all(each.device_type == "CPU" for each in tf.config.list_physical_devices())
