"""Running a file of TensorFlow Lite."""

import numpy as np
import tensorflow as tf


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    """Return the first output for the only input."""
    interpreter = tf.lite.Interpreter(model_content=content)
    given = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(given, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
