"""The front end that computes on each of Keras's backends."""

import functools
import importlib
from types import ModuleType

import keras

from layernorm.callers import is_called_from

_FRONT_ENDS = {
    "jax": "layernorm.jax",
    "numpy": "layernorm.numpy",
    "tensorflow": "layernorm.tensorflow",
    "torch": "layernorm.torch.over_axes",
}
_ON_JAX = keras.backend.backend() == "jax"

# They translate JAX's primitives, and know none of ours.
_TRANSLATORS = ("keras.src.export.onnx", "keras.src.export.openvino")


def front_end() -> ModuleType:
    """Return the module whose layer_norm and rms_norm take the backend's tensors.

    It is the front end for the backend's framework. Where there is none, or it cannot be imported,
    or its calls are to be translated for another library, it is `layernorm.keras.formula`.
    """
    if _ON_JAX and is_called_from(*_TRANSLATORS):
        return importlib.import_module("layernorm.keras.formula")
    return _of_the_backend()


@functools.cache
def _of_the_backend() -> ModuleType:
    name = _FRONT_ENDS.get(keras.backend.backend())
    if name is not None:
        try:
            return importlib.import_module(name)
        except ImportError:
            pass
    return importlib.import_module("layernorm.keras.formula")
