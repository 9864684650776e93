#include "bindings/methods.h"

#include "bindings/owned.h"
#include "handlers.h"

namespace layernorm::xla {
namespace {

bool add(PyObject* handlers, const char* name, Handler* handler) {
  const python::Owned capsule(PyCapsule_New(reinterpret_cast<void*>(handler), nullptr, nullptr));
  return capsule && PyDict_SetItemString(handlers, name, capsule.get()) == 0;
}

// xla_handlers(): a dict from the names of the calls to the handlers' capsules.
PyObject* handlers(PyObject*, PyObject*) {
  python::Owned result(PyDict_New());
  if (!result || !add(result.get(), "layernorm_forward", forward_handler) ||
      !add(result.get(), "layernorm_backward", backward_handler))
    return nullptr;
  return result.release();
}

}  // namespace

PyMethodDef methods[] = {
    {"xla_handlers", handlers, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace layernorm::xla
