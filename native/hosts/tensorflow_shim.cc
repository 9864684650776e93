#include "tensorflow_shim.h"

namespace layernorm::tensorflow {

Shim shim;

const char* Shim::find(const LoadedLibrary& library) {
  LAYERNORM_TENSORFLOW_FUNCTIONS(LAYERNORM_FIND)
  return nullptr;
}

}  // namespace layernorm::tensorflow
