#include "tensorflow_shim.h"

#include "loaded_library.h"

namespace layernorm::tensorflow {

Shim shim;

const char* load_shim(const char* library) {
  const LoadedLibrary loaded(library);
  if (!loaded) return library;
  Shim found;
#define LAYERNORM_FIND(result, name, parameters) \
  if (!loaded.find(#name, found.name)) return #name;
  LAYERNORM_TENSORFLOW_FUNCTIONS(LAYERNORM_FIND)
#undef LAYERNORM_FIND
  shim = found;
  return nullptr;
}

}  // namespace layernorm::tensorflow
