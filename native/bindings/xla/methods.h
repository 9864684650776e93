// The XLA host's function in the module _native.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm::xla {

extern PyMethodDef methods[];

}  // namespace layernorm::xla
