#include "c_api.h"

namespace layernorm::tensorflow {

CApi c_api;

const char* CApi::find(const LoadedLibrary& library) {
  LAYERNORM_TENSORFLOW_FUNCTIONS(LAYERNORM_FIND)
  return nullptr;
}

}  // namespace layernorm::tensorflow
