"""Who is calling: exporters of other libraries, which say so in no other way."""

import sys


def is_called_from(*modules: str) -> bool:
    """Tell whether code of a module whose name begins with one of these is being run.

    Args:
        modules: beginnings of names, such as "keras.src.export.".
    Returns: True if the call stack of this thread has such a module.
    Raises: nothing.
    """
    frame = sys._getframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(modules):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
