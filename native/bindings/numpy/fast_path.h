// The fast path for NumPy arrays that are contiguous, aligned and normalized over their last axes:
// no Python between the call and the kernels. The functions return None, with nothing touched,
// where it cannot serve a call.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm::numpy {

PyObject* try_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_forward_with_statistics(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_layer_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace layernorm::numpy
