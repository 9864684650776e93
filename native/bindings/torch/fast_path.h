// The short way for plain tensors, past PyTorch's dispatcher: contiguous, on the CPU, normalized
// over the last axes, while nothing watches or transforms the operators that run.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm::torch {

// What the short way needs of PyTorch, by name; ValueError where a name is missing. Without
// DLPack's exchange interface the short way is closed, and every call goes through the operators.
bool open_fast_path(PyObject* parts);

PyObject* try_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_forward_over_axes(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_forward_into(PyObject*, PyObject* const* arguments, Py_ssize_t count);
// () -> whether no mode, transform, tracer, profiler or forward-mode level needs to see operators.
PyObject* is_unwatched(PyObject*, PyObject*);

PyObject* try_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace layernorm::torch
