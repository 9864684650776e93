// References to Python objects.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <initializer_list>
#include <memory>

namespace layernorm::python {

struct DeleteReference {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};

// Owns one reference, or none.
struct Owned : std::unique_ptr<PyObject, DeleteReference> {
  using unique_ptr::unique_ptr;
  PyObject* release_or_none() { return *this ? release() : Py_NewRef(Py_None); }
};

// A tuple of these references, which it takes over; null where one is null, with Python's error set.
inline PyObject* tuple_of(std::initializer_list<PyObject*> items) {
  bool complete = true;
  for (PyObject* item : items) complete &= item != nullptr;
  PyObject* tuple = complete ? PyTuple_New(static_cast<Py_ssize_t>(items.size())) : nullptr;
  Py_ssize_t at = 0;
  for (PyObject* item : items) {
    if (tuple)
      PyTuple_SetItem(tuple, at++, item);
    else
      Py_XDECREF(item);
  }
  return tuple;
}

// A tuple of the ints value(0) to value(count - 1); null, with Python's error set, if memory runs
// out.
template <class Value>
PyObject* tuple_of_ints(Py_ssize_t count, const Value& value) {
  PyObject* tuple = PyTuple_New(count);
  for (Py_ssize_t at = 0; tuple && at < count; ++at) {
    PyObject* item = PyLong_FromLongLong(value(at));
    if (!item) Py_CLEAR(tuple);
    if (tuple) PyTuple_SetItem(tuple, at, item);
  }
  return tuple;
}

}  // namespace layernorm::python
