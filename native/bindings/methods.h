// The functions of the module _native, from each framework's bindings.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm {

namespace numpy {
extern PyMethodDef methods[];
}
namespace torch {
extern PyMethodDef methods[];
}
namespace tensorflow {
extern PyMethodDef methods[];
}
namespace xla {
extern PyMethodDef methods[];
}

// A function of METH_FASTCALL in the type that PyMethodDef has.
inline PyCFunction as_method(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace layernorm
