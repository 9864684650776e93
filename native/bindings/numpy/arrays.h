// What the NumPy host knows of arrays: their types. Included by each file of the host after
// Python.h and NumPy's headers.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL layernorm_numpy_api
#include <numpy/arrayobject.h>

#include "bindings/gil.h"
#include "bindings/owned.h"
#include "layer_norm.h"

namespace layernorm::python {

// False for types that the kernels do not know.
bool data_type(PyArray_Descr* descr, DataType* type);

inline bool data_type(PyArrayObject* array, DataType* type) {
  return data_type(PyArray_DESCR(array), type);
}

inline bool accepts_parameter(DataType type, DataType parameter_type) {
  return parameter_type == type || (size_of(type) == 2 && parameter_type == DataType::float32);
}

// The ways for plain arrays, which need no help from Python; None where they cannot serve, and then
// nothing has been touched.
PyObject* try_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_forward_with_statistics(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* try_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count);

struct OwnedArray : Owned {
  using Owned::Owned;
  PyArrayObject* array() const { return reinterpret_cast<PyArrayObject*>(get()); }
  void* data() const { return get() ? PyArray_DATA(array()) : nullptr; }
};

// Uninitialized; all but a small one aligned to cache lines, a large one in memory that an earlier
// one left.
OwnedArray new_array(PyArray_Descr* descr, int dimensions, const npy_intp* shape);

}  // namespace layernorm::python
