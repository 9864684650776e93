// What the NumPy host knows of arrays: their types, and who holds the GIL. Included by each file of
// the host after Python.h and NumPy's headers.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL layernorm_numpy_api
#include <numpy/arrayobject.h>

#include <chrono>
#include <thread>
#include <utility>

#include "../layer_norm.h"

namespace layernorm::python {

// Releasing the GIL costs about 0.1 us; below this size nobody could use it anyway.
constexpr int64_t kLongWorkBytes = 64 * 1024;

class WithoutGil {
 public:
  explicit WithoutGil(int64_t bytes)
      : state_(bytes >= kLongWorkBytes ? PyEval_SaveThread() : nullptr) {}
  // A daemon thread that comes back while Python ends is made to exit (until Python 3.13), by an
  // unwinding that would give up references without the GIL. It hangs instead, as from 3.14 on.
  ~WithoutGil() {
    if (!state_) return;
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

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
PyObject* fast_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* fast_forward_with_statistics(PyObject*, PyObject* const* arguments, Py_ssize_t count);
PyObject* fast_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count);

// A reference, given up at the end.
class Owned {
 public:
  Owned() = default;
  explicit Owned(PyObject* object) : object_(object) {}
  Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Owned() { Py_XDECREF(object_); }

  explicit operator bool() const { return object_ != nullptr; }
  PyArrayObject* array() const { return reinterpret_cast<PyArrayObject*>(object_); }
  void* data() const { return object_ ? PyArray_DATA(array()) : nullptr; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  PyObject* release_or_none() { return object_ ? release() : Py_NewRef(Py_None); }

 private:
  PyObject* object_ = nullptr;
};

// Uninitialized; a large one in memory that an earlier one left.
Owned new_array(PyArray_Descr* descr, int dimensions, const npy_intp* shape);

}  // namespace layernorm::python
