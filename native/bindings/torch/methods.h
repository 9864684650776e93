// The PyTorch host's functions in the module _native.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm::torch {

extern PyMethodDef methods[];

}  // namespace layernorm::torch
