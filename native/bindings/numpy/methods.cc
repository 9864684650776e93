#include "bindings/methods.h"

#include "fast_path.h"
#include "general.h"

namespace layernorm::numpy {

PyMethodDef methods[] = {
    {"try_forward", as_method(try_forward), METH_FASTCALL, nullptr},
    {"try_forward_with_statistics", as_method(try_forward_with_statistics), METH_FASTCALL, nullptr},
    {"try_layer_forward", as_method(try_layer_forward), METH_FASTCALL, nullptr},
    {"try_backward", as_method(try_backward), METH_FASTCALL, nullptr},
    {"forward", as_method(general_forward), METH_FASTCALL, nullptr},
    {"forward_quantized", as_method(general_forward_quantized), METH_FASTCALL, nullptr},
    {"backward", as_method(general_backward), METH_FASTCALL, nullptr},
    {"empty", as_method(empty), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace layernorm::numpy
