// Arguments of the fast paths. What is unusual, or wrong, is left to the general path, which raises
// the errors.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>

#include "layout.h"

namespace layernorm::python {

// False, with a TypeError, for another number of arguments than the function takes, without or with
// its optional ones.
bool has_count(const char* name, Py_ssize_t count, Py_ssize_t expected, Py_ssize_t optional = 0);

// How a call names the normalized axes: by the sizes of x's last axes, or by axes.
enum class Over { normalized_shape, axes };

// An int or a NumPy integer, or a tuple or list of them: axes, or sizes.
struct Integers {
  Py_ssize_t count = 0;
  int64_t value[kMostAxes];

  bool take(PyObject* object);
  // How many they are, if they are the last of `ndim` axes, in any order, else 0.
  int count_if_last_axes(int64_t ndim) const;
  // How many they are, if they are the last of these sizes, else 0.
  template <class Size>
  int count_if_last_sizes(int64_t ndim, const Size* sizes) const {
    return count <= ndim && std::equal(value, value + count, sizes + ndim - count)
               ? static_cast<int>(count)
               : 0;
  }

 private:
  bool append(PyObject* object);
};

// A float, an int or a NumPy floating scalar, finite and not negative.
bool take_eps(PyObject* object, Problem& problem);

bool take_flags(PyObject* centered, PyObject* zero_centered_weight, Problem& problem);

}  // namespace layernorm::python
