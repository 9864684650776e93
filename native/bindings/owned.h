// References to Python's objects.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>

namespace layernorm::python {

struct GiveUpReference {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};

// A reference, given up at the end.
struct Owned : std::unique_ptr<PyObject, GiveUpReference> {
  using unique_ptr::unique_ptr;
  PyObject* release_or_none() { return *this ? release() : Py_NewRef(Py_None); }
};

}  // namespace layernorm::python
