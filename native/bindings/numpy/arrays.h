// NumPy's arrays: their types, and new ones.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL layernorm_numpy_api
#if !defined(LAYERNORM_DEFINES_NUMPY_API)  // arrays.cc does, for all of us
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "bindings/owned.h"
#include "layer_norm.h"

namespace layernorm::numpy {

// False for types that the kernels do not know.
bool data_type(PyArray_Descr* descr, DataType* type);

inline bool data_type(PyArrayObject* array, DataType* type) {
  return data_type(PyArray_DESCR(array), type);
}

struct OwnedArray : python::Owned {
  using Owned::Owned;
  PyArrayObject* array() const { return reinterpret_cast<PyArrayObject*>(get()); }
  void* data() const { return get() ? PyArray_DATA(array()) : nullptr; }
};

// Uninitialized; all but a small one aligned to cache lines, a large one in memory from the buffer
// cache.
OwnedArray new_array(PyArray_Descr* descr, int dimensions, const npy_intp* shape);

// Before all else here. False, with Python's error set, without a NumPy that it can use.
bool load_c_api();

}  // namespace layernorm::numpy
