#include "c_api.h"

namespace layernorm::torch {

CApi c_api;

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
  if (c_api.torch_parallel_for(0, tasks, 1, call_body, &call) != 0) body(context, 0, tasks);
}

}  // namespace

const char* CApi::find(const LoadedLibrary& library) {
  LAYERNORM_TORCH_FUNCTIONS(LAYERNORM_FIND)
#define LAYERNORM_FIND_IF_THERE(result, name, parameters) library.find(#name, this->name);
  LAYERNORM_TORCH_LATER_FUNCTIONS(LAYERNORM_FIND_IF_THERE)
#undef LAYERNORM_FIND_IF_THERE
  return nullptr;
}

Threads parallel_for() {
  uint32_t count = 1;
  if (c_api.torch_get_num_threads(&count) != 0) count = 1;
  constexpr int64_t kBytesPerThread = 96 * 1024;  // OpenMP's threads stay awake for milliseconds
  return {static_cast<int>(count), nullptr, run_tasks, kBytesPerThread};
}

}  // namespace layernorm::torch
