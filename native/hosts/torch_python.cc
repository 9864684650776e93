#include "torch_python.h"

#include "torch_operators.h"
#include "torch_plain.h"
#include "torch_shim.h"

namespace layernorm::torch {
namespace {

// torch_load(library, parts): finds PyTorch's C functions in the library, defines our operators,
// and opens the short way with `parts`, a dict (see torch_plain.cc).
PyObject* load(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "torch_load takes 2 arguments");
  const char* library = PyUnicode_AsUTF8(arguments[0]);
  if (!library) return nullptr;
  static bool defined = false;
  if (!defined) {
    if (const char* missing = load_shim(library))
      return PyErr_Format(PyExc_ImportError,
                          "layernorm.torch needs PyTorch 2.10 or later: %s was not found in %s",
                          missing, library);
    if (!define_operators())
      return PyErr_Format(PyExc_ImportError,
                          "PyTorch did not take the operators of the namespace layernorm");
    defined = true;
  }
  if (!open_plain_way(arguments[1])) return nullptr;
  Py_RETURN_NONE;
}

// torch_override_aten(on)
PyObject* override(PyObject*, PyObject* on) {
  if (!shim.torch_library_impl)
    return PyErr_Format(PyExc_RuntimeError, "torch_load has not been called");
  if (!(on == Py_True ? override_aten() : restore_aten()))
    return PyErr_Format(PyExc_RuntimeError, "PyTorch refused the kernels of native_layer_norm");
  Py_RETURN_NONE;
}

template <class F>
PyCFunction as_method(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace

PyMethodDef methods[] = {
    {"torch_load", as_method(load), METH_FASTCALL, nullptr},
    {"torch_override_aten", override, METH_O, nullptr},
    {"torch_forward", as_method(plain_forward), METH_FASTCALL, nullptr},
    {"torch_forward_into", as_method(plain_forward_into), METH_FASTCALL, nullptr},
    {"torch_backward", as_method(plain_backward), METH_FASTCALL, nullptr},
    {"torch_is_unwatched", is_unwatched, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace layernorm::torch
