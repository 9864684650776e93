// The general path for NumPy arrays: layernorm.spec has checked the arguments; here they become a
// Problem.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm::numpy {

PyObject* general_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* general_forward_quantized(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* general_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* empty(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace layernorm::numpy
