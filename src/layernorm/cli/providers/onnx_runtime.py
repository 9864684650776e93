"""ONNX Runtime on the CPU: a graph of one norm."""

import ctypes
import math
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from layernorm.cli.problem import Array, Problem, number_type
from layernorm.cli.providers.provider import Call, Provider

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
OPERATORS = {"layer_norm": "LayerNormalization", "rms_norm": "SimplifiedLayerNormalization"}
OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # that of the same release


class OnnxRuntime(Provider):
    """LayerNormalization-17; for channels first, between two Transposes. Forward only.

    RMS norm is ONNX Runtime's own operator, for which it has kernels in every type.

    Its fresh outputs come from an arena that keeps its memory, so they cost no page faults.
    """

    name: ClassVar[str] = "onnxruntime"
    distribution: ClassVar[str] = "onnxruntime"

    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Return the call of a session; a reused output is bound to it."""
        self.require(problem, reuse_output=reuse_output, can_reuse=True)
        session = self._session(problem)
        inputs = {name: _value(array) for name, array in _inputs(problem).items()}
        if not reuse_output:
            return partial(session.run_with_ort_values, ["y"], inputs)
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        y = _value(np.empty_like(problem.x))
        binding.bind_ortvalue_output("y", y)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return y

        return run

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Copy y; ONNX Runtime does not convert bfloat16 to NumPy, so its bits are read."""
        value = result[0] if isinstance(result, list) else result
        if value.element_type() != TensorProto.BFLOAT16:
            return (value.numpy(),)
        size = math.prod(value.shape())
        bits = (ctypes.c_uint16 * size).from_address(value.data_ptr())
        array = np.frombuffer(bits, dtype=number_type("bfloat16")).reshape(value.shape())
        return (array.copy(),)

    def _session(self, problem: Problem) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            _model(problem), options, providers=["CPUExecutionProvider"]
        )


def _model(problem: Problem) -> bytes:
    first, last = ("x", "y") if not problem.is_channels_first else ("x_last", "y_last")
    _, *names = _inputs(problem)
    nodes = [
        helper.make_node(
            OPERATORS[problem.kind], [first, *names], [last], axis=-1, epsilon=problem.eps
        )
    ]
    if problem.is_channels_first:
        nodes.insert(0, helper.make_node("Transpose", ["x"], [first], perm=problem.channels_last))
        nodes.append(helper.make_node("Transpose", [last], ["y"], perm=problem.channels_back))
    number = ONNX_TYPES[problem.type_name]
    inputs = [
        helper.make_tensor_value_info(name, number, array.shape)
        for name, array in _inputs(problem).items()
    ]
    outputs = [helper.make_tensor_value_info("y", number, problem.x.shape)]
    model = helper.make_model(
        helper.make_graph(nodes, "layer_norm", inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    serialized: bytes = model.SerializeToString()
    return serialized


def _inputs(problem: Problem) -> dict[str, Array]:
    return dict(zip(("x", "weight", "bias"), (problem.x, *problem.parameters), strict=False))


def _value(array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), TensorProto.BFLOAT16
        )
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
