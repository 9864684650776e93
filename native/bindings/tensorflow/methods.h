// The TensorFlow host's functions in the module _native.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace layernorm::tensorflow {

extern PyMethodDef methods[];

}  // namespace layernorm::tensorflow
