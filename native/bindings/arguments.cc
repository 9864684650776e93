#include "arguments.h"

#include <cmath>

#include "bindings/numpy/arrays.h"

namespace layernorm::python {

bool has_count(const char* name, Py_ssize_t count, Py_ssize_t expected, Py_ssize_t optional) {
  if (count == expected || count == expected + optional) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, expected, count);
  return false;
}

bool Integers::take(PyObject* object) {
  // Not a subclass that iterates in its own way. torch.Size does not.
  const bool is_tuple = PyTuple_Check(object) && PyType_GetSlot(Py_TYPE(object), Py_tp_iter) ==
                                                     PyType_GetSlot(&PyTuple_Type, Py_tp_iter);
  if (!is_tuple && !PyList_CheckExact(object)) return append(object);
  const Py_ssize_t size = is_tuple ? PyTuple_Size(object) : PyList_Size(object);
  for (Py_ssize_t at = 0; at < size; ++at) {
    const Owned item(is_tuple ? Py_NewRef(PyTuple_GetItem(object, at))
                              : PySequence_GetItem(object, at));
    if (!item) PyErr_Clear();  // another thread has shortened the list
    if (!item || !append(item.get())) return false;
  }
  return count > 0;
}

bool Integers::append(PyObject* object) {
  if (count == kMostAxes || !(PyLong_CheckExact(object) || PyArray_IsScalar(object, Integer)))
    return false;
  int overflow = 0;
  const int64_t found = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (found == -1 && PyErr_Occurred()) {  // timedelta64, an Integer without __index__
    PyErr_Clear();
    return false;
  }
  value[count++] = found;
  return overflow == 0;
}

int Integers::count_if_last_axes(int64_t ndim) const {
  if (count > ndim) return 0;
  uint64_t seen = 0;
  for (Py_ssize_t at = 0; at < count; ++at) {
    const int64_t from_end = value[at] < 0 ? -(value[at] + 1) : ndim - 1 - value[at];
    const uint64_t bit = uint64_t{1} << (from_end & 63);
    if (from_end < 0 || from_end >= count || (seen & bit)) return 0;
    seen |= bit;
  }
  return static_cast<int>(count);
}

bool take_eps(PyObject* object, Problem& problem) {
  const PyTypeObject* type = Py_TYPE(object);
  if (PyFloat_CheckExact(object)) {
    problem.eps = PyFloat_AsDouble(object);
  } else if (PyLong_CheckExact(object) || type == &PyDoubleArrType_Type ||
             type == &PyFloatArrType_Type || type == &PyHalfArrType_Type ||
             type == &PyLongDoubleArrType_Type) {
    problem.eps = PyFloat_AsDouble(object);
    if (problem.eps == -1) PyErr_Clear();  // an int too large for a float
  } else {
    return false;
  }
  return problem.eps >= 0 && std::isfinite(problem.eps);
}

bool take_flags(PyObject* centered, PyObject* zero_centered_weight, Problem& problem) {
  if (!PyBool_Check(centered) || !PyBool_Check(zero_centered_weight)) return false;
  problem.centered = centered == Py_True;
  problem.zero_centered_weight = zero_centered_weight == Py_True;
  return true;
}

}  // namespace layernorm::python
