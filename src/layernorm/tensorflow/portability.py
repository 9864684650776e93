"""Whether a graph that is being traced must run without this package: no operation of ours then."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from layernorm.callers import is_called_from

# Modules with code that traces a model anew in order to write it to a file. tf.saved_model.save is
# not one: it may trace a user's function, and that trace also serves the user's later calls.
_EXPORTERS = (
    "keras.src.export.",
    "keras.src.backend.tensorflow.layer",  # what tf.saved_model.save asks a Keras model for
    "tensorflow.lite.python.",
)

_asked: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Trace calls into TensorFlow's own operations, for files that run without this package.

    Within the context, functions that TensorFlow traces contain the formula, in float32 for x of
    float32 and 16-bit types, in float64 for float64. Eager calls, and functions traced before, stay
    as they are. Keras's `export`, and `tf.saved_model.save` and `TFLiteConverter.from_keras_model`
    of a Keras model, need no context.

    Args: none.
    Returns: a context manager, or a decorator.
    Raises: nothing.
    """
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def is_wanted() -> bool:
    """Tell whether `portable` was asked for, or an exporter of TensorFlow or Keras is tracing."""
    return _asked.get() or is_called_from(*_EXPORTERS)
