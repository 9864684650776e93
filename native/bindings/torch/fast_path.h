// The fast path for tensors, past PyTorch's dispatcher: contiguous, on the CPU, normalized over
// their last axes, while nothing watches or transforms the operators that run. The functions of the
// module _native, without their prefix torch_.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm::torch {

PyObject* try_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_forward_over_axes(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_forward_into(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
// () -> whether no mode, transform, tracer, profiler or forward-mode level needs to see operators.
PyObject* is_unwatched(PyObject*, PyObject*);

}  // namespace layernorm::torch
