#include "bindings/methods.h"

#include "bindings/arguments.h"
#include "c_api.h"
#include "fast_path.h"
#include "fast_path_call.h"
#include "operators.h"

namespace layernorm::torch {
namespace {

// torch_load(library, parts): finds PyTorch's C functions in the library, defines our operators,
// and opens the fast path with the dict `parts` (open_fast_path).
PyObject* load(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!python::has_count("torch_load", count, 2)) return nullptr;
  const char* library = PyUnicode_AsUTF8AndSize(arguments[0], nullptr);
  if (!library) return nullptr;
  static bool defined = false;
  if (!defined) {
    if (const char* missing = load_c_api(library))
      return PyErr_Format(PyExc_ImportError,
                          "layernorm.torch needs PyTorch 2.10 or later: %s was not found in %s",
                          missing, library);
    if (!define_operators())
      return PyErr_Format(PyExc_ImportError,
                          "PyTorch did not take the operators of the namespace layernorm");
    defined = true;
  }
  if (!open_fast_path(arguments[1])) return nullptr;
  Py_RETURN_NONE;
}

// torch_override_aten(on)
PyObject* override(PyObject*, PyObject* on) {
  if (!c_api.torch_library_impl)
    return PyErr_Format(PyExc_RuntimeError, "torch_load has not been called");
  if (!(on == Py_True ? override_aten() : restore_aten()))
    return PyErr_Format(PyExc_RuntimeError, "PyTorch refused the kernels of native_layer_norm");
  Py_RETURN_NONE;
}

}  // namespace

PyMethodDef methods[] = {
    {"torch_load", as_method(load), METH_FASTCALL, nullptr},
    {"torch_override_aten", override, METH_O, nullptr},
    {"torch_try_forward", as_method(try_forward), METH_FASTCALL, nullptr},
    {"torch_try_forward_over_axes", as_method(try_forward_over_axes), METH_FASTCALL, nullptr},
    {"torch_try_forward_into", as_method(try_forward_into), METH_FASTCALL, nullptr},
    {"torch_try_backward", as_method(try_backward), METH_FASTCALL, nullptr},
    {"torch_is_unwatched", is_unwatched, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace layernorm::torch
