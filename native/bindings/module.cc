// The module `layernorm._native`: the functions of each framework's bindings, and what they share.
#include <initializer_list>

#include "bindings/methods.h"
#include "bindings/numpy/arrays.h"
#include "runtime/thread_pool.h"

namespace {

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(layernorm::chosen_isa()); }

PyObject* isas(PyObject*, PyObject*) {
  const int count = layernorm::available_isa_count();
  PyObject* list = PyList_New(count);
  for (int index = 0; list && index < count; ++index) {
    PyObject* name = PyUnicode_FromString(layernorm::available_isa(index));
    if (!name) Py_CLEAR(list);
    if (list) PyList_SetItem(list, index, name);
  }
  return list;
}

PyObject* get_threads(PyObject*, PyObject*) {
  return PyLong_FromLong(layernorm::get_num_threads());
}

PyObject* set_threads(PyObject*, PyObject* object) {
  int overflow = 0;
  const long count = PyLong_AsLongAndOverflow(object, &overflow);
  if (count == -1 && PyErr_Occurred()) return nullptr;
  if (overflow != 0 || count < 1 || count > layernorm::kMostThreads) {
    PyErr_Format(PyExc_ValueError, "num_threads is %S, but needs 1 to %d", object,
                 layernorm::kMostThreads);
    return nullptr;
  }
  layernorm::set_num_threads(static_cast<int>(count));
  Py_RETURN_NONE;
}

const char get_num_threads_doc[] =
    "get_num_threads($module, /)\n--\n\n"
    "The most threads that one call uses, from NumPy or TensorFlow.\n\n"
    "By default LAYERNORM_NUM_THREADS, or the processors this process may run on.";

const char set_num_threads_doc[] =
    "set_num_threads($module, count, /)\n--\n\n"
    "Use at most `count` threads, from the next call on; the results do not depend on it.\n\n"
    "Raises: ValueError for a count outside 1 to 1024, TypeError for what is not an integer.";

PyMethodDef shared_methods[] = {
    {"isa", isa, METH_NOARGS, "The instruction set whose kernels run."},
    {"isas", isas, METH_NOARGS, "The instruction sets that this processor runs, worst first."},
    {"get_num_threads", get_threads, METH_NOARGS, get_num_threads_doc},
    {"set_num_threads", set_threads, METH_O, set_num_threads_doc},
    {nullptr, nullptr, 0, nullptr},
};

// The frameworks' operators, and what we keep of NumPy's and PyTorch's objects, belong to the process.
bool is_main_interpreter() {
  if (PyInterpreterState_GetID(PyInterpreterState_Get()) == 0) return true;
  PyErr_SetString(
      PyExc_ImportError,
      "layernorm cannot be used in a sub-interpreter, as NumPy cannot: import it in the "
      "main interpreter, or use threads or processes");
  return false;
}

int fill(PyObject* module) {
  if (!is_main_interpreter() || !layernorm::numpy::load_c_api()) return -1;
  for (PyMethodDef* methods : {layernorm::numpy::methods, layernorm::torch::methods,
                               layernorm::tensorflow::methods, layernorm::xla::methods})
    if (PyModule_AddFunctions(module, methods) != 0) return -1;
  return 0;
}

PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(fill)},
#if defined(Py_GIL_DISABLED)
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_native",
    "The CPU kernels, as each framework calls them.",
    0,
    shared_methods,
    slots,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__native() { return PyModuleDef_Init(&definition); }
