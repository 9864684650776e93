#include "torch_shim.h"

#include "loaded_library.h"

namespace layernorm::torch {

Shim shim;

namespace {

struct Call {
  Threads::Body body;
  void* context;
};

void call_body(int64_t begin, int64_t end, void* context) {
  const auto* call = static_cast<const Call*>(context);
  call->body(call->context, begin, end);
}

void run_tasks(void*, int64_t tasks, Threads::Body body, void* context) {
  Call call = {body, context};
  if (shim.torch_parallel_for(0, tasks, 1, call_body, &call) != 0) body(context, 0, tasks);
}

}  // namespace

const char* load_shim(const char* library) {
  const LoadedLibrary loaded(library);
  if (!loaded) return library;
  Shim found;
#define LAYERNORM_FIND(result, name, parameters) \
  if (!loaded.find(#name, found.name)) return #name;
  LAYERNORM_TORCH_FUNCTIONS(LAYERNORM_FIND)
#undef LAYERNORM_FIND
#define LAYERNORM_FIND(result, name, parameters) loaded.find(#name, found.name);
  LAYERNORM_TORCH_LATER_FUNCTIONS(LAYERNORM_FIND)
#undef LAYERNORM_FIND
  shim = found;
  return nullptr;
}

Threads parallel_for() {
  uint32_t count = 1;
  if (shim.torch_get_num_threads(&count) != 0) count = 1;
  return {static_cast<int>(count), nullptr, run_tasks};
}

}  // namespace layernorm::torch
