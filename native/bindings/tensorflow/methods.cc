#include "bindings/methods.h"

#include <algorithm>

#include "c_api.h"
#include "kernels.h"
#include "operators.h"
#include "runtime/thread_pool.h"

namespace layernorm::tensorflow {
namespace {

// tensorflow_load(library): finds TensorFlow's C functions in the library, and defines our
// operations.
PyObject* load(PyObject*, PyObject* name) {
  const char* library = PyUnicode_AsUTF8AndSize(name, nullptr);
  if (!library) return nullptr;
  static bool defined = false;
  if (defined) Py_RETURN_NONE;
  if (const char* missing = load_c_api(library))
    return PyErr_Format(PyExc_ImportError, "%s was not found in %s", missing, library);
  if (const char* reason = define_operators())
    return PyErr_Format(PyExc_ImportError, "TensorFlow did not take our operations: %s", reason);
  defined = true;
  Py_RETURN_NONE;
}

// tensorflow_bound_threads(most)
PyObject* bound(PyObject*, PyObject* most) {
  const long count = PyLong_AsLong(most);
  if (count == -1 && PyErr_Occurred()) return nullptr;
  bound_threads(static_cast<int>(std::clamp(count, 0L, long{kMostThreads})));
  Py_RETURN_NONE;
}

}  // namespace

PyMethodDef methods[] = {
    {"tensorflow_load", load, METH_O, nullptr},
    {"tensorflow_bound_threads", bound, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace layernorm::tensorflow
