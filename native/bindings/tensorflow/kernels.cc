#include "kernels.h"

#include <atomic>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>

#include "call.h"
#include "runtime/thread_pool.h"

namespace layernorm::tensorflow {
namespace {

std::atomic<int> most_threads{kMostThreads};

Threads threads() { return pool_threads(most_threads.load(std::memory_order_relaxed)); }

}  // namespace

void* create_kernel(KernelConstruction* construction) {
  const OwnedStatus status;
  const auto integer = [&](const char* name) {
    int64_t value = 0;
    if (status.ok()) c_api.TF_OpKernelConstruction_GetAttrInt64(construction, name, &value, status);
    return value;
  };
  const auto flag = [&](const char* name) {
    unsigned char value = 0;
    if (status.ok()) c_api.TF_OpKernelConstruction_GetAttrBool(construction, name, &value, status);
    return value != 0;
  };
  std::unique_ptr<Definition> made(new (std::nothrow) Definition());
  if (!made) {
    c_api.TF_SetStatus(status, kResourceExhausted, "layernorm: out of memory for a kernel");
    c_api.TF_OpKernelConstruction_Failure(construction, status);
    return nullptr;
  }
  int32_t total = 0;
  c_api.TF_OpKernelConstruction_GetAttrSize(construction, "axis", &made->axes, &total, status);
  if (status.ok() && (made->axes < 1 || made->axes > kMostAxes))
    c_api.TF_SetStatus(status, kInvalidArgument, "layernorm: axis names no axis, or too many");
  if (status.ok())
    c_api.TF_OpKernelConstruction_GetAttrInt64List(construction, "axis", made->axis, made->axes,
                                                   status);
  // An attribute of type float has 32 bits, so the 64 of eps come as an int.
  const int64_t eps_bits = integer("eps_bits");
  std::memcpy(&made->eps, &eps_bits, sizeof(made->eps));
  made->centered = flag("centered");
  made->zero_centered_weight = flag("zero_centered_weight");
  made->has_weight = integer("weights") == 1;
  made->has_bias = integer("biases") == 1;
  int32_t code = 0;
  if (status.ok()) c_api.TF_OpKernelConstruction_GetAttrType(construction, "P", &code, status);
  if (status.ok() && !from_code(code, &made->parameter_type))
    c_api.TF_SetStatus(status, kInvalidArgument, "layernorm: P is no type of parameters");
  if (status.ok()) return made.release();
  c_api.TF_OpKernelConstruction_Failure(construction, status);
  return nullptr;
}

void delete_kernel(void* kernel) { delete static_cast<Definition*>(kernel); }

void compute_norm(void* kernel, KernelContext* context) {
  Call call(kernel, context);
  const Definition& definition = call.definition();
  Held weight, bias;
  {
    // Let go before y is made: held, x could not be written over.
    const Held x = call.input(0);
    if (!call.take_x(x)) return;
  }
  int next = 1;
  if (definition.has_weight) {
    weight = call.input(next++);
    if (!call.take_parameter("weight", weight)) return;
  }
  if (definition.has_bias) {
    bias = call.input(next++);
    if (!call.take_parameter("bias", bias)) return;
  }
  Problem& problem = call.problem();
  const Held y = call.output_as_x(0, 0);
  const Held statistics = call.output(1, compute_type(problem.type), call.statistics_sizes());
  const Held x = call.input(0);
  if (call.failed()) return;
  problem.statistics = call.statistics_at(statistics);
  if (call.is_empty()) {
    const Sizes sizes = call.statistics_sizes();
    const int64_t bytes = sizes.elements() * size_of(compute_type(problem.type));
    if (bytes > 0) std::memset(statistics.data(), 0, static_cast<size_t>(bytes));
    return;
  }
  const Walked walked_x = Walked::to_read(call, x.data(), problem.type);
  const Walked walked_y = Walked::to_write(call, y.data(), problem.type);
  if (walked_x.failed() || walked_y.failed()) {
    call.fail_for_memory();
    return;
  }
  if (weight) problem.weight = weight.data();
  problem.x = walked_x.array(call);
  Forward job = {problem, bias ? bias.data() : nullptr, walked_y.array(call)};
  if (forward(job, threads()) == layernorm::Status::ok)
    walked_y.flush(call);
  else
    call.fail_for_memory();
}

void compute_backward(void* kernel, KernelContext* context) {
  Call call(kernel, context);
  const Definition& definition = call.definition();
  const Held x = call.input(1);
  if (!call.take_x(x)) return;
  Problem& problem = call.problem();
  {
    const Held dy = call.input(0);
    DataType type;
    if (call.failed()) return;
    if (!dy.has_sizes(call.sizes()) || !dy.data_type(&type) || type != problem.type) {
      call.fail("dy needs x's sizes and type");
      return;
    }
  }
  const Held statistics = call.input(2);
  if (call.failed()) return;
  DataType statistics_type;
  if (!statistics.has_sizes(call.statistics_sizes()) || !statistics.data_type(&statistics_type) ||
      statistics_type != compute_type(problem.type)) {
    call.fail("the statistics are not those of this x");
    return;
  }
  Held weight;
  if (definition.has_weight) {
    weight = call.input(3);
    if (!call.take_parameter("weight", weight)) return;
    problem.weight = weight.data();
  }
  const Held dx = call.output_as_x(0, 0);
  Held dweight, dbias;
  int next = 1;
  const Sizes& normalized = call.layout().normalized();
  if (definition.has_weight) dweight = call.output(next++, problem.parameter_type, normalized);
  if (definition.has_bias) dbias = call.output(next++, problem.parameter_type, normalized);
  const Held dy = call.input(0);
  if (call.failed()) return;
  if (call.is_empty()) {
    const int64_t bytes = normalized.elements() * size_of(problem.parameter_type);
    for (const Held* each : {&dweight, &dbias})
      if (*each && bytes > 0) std::memset(each->data(), 0, static_cast<size_t>(bytes));
    return;
  }
  problem.statistics = call.statistics_at(statistics);
  const Walked walked_x = Walked::to_read(call, x.data(), problem.type);
  const Walked walked_dy = Walked::to_read(call, dy.data(), problem.type);
  const Walked walked_dx = Walked::to_write(call, dx.data(), problem.type);
  if (walked_x.failed() || walked_dy.failed() || walked_dx.failed()) {
    call.fail_for_memory();
    return;
  }
  problem.x = walked_x.array(call);
  Backward job = {};
  job.problem = problem;
  job.dy = walked_dy.array(call);
  job.dx = walked_dx.array(call);
  if (dweight) job.dweight = dweight.data();
  if (dbias) job.dbias = dbias.data();
  if (backward(job, threads()) == layernorm::Status::ok)
    walked_dx.flush(call);
  else
    call.fail_for_memory();
}

void bound_threads(int most) {
  most_threads.store(most > 0 ? most : kMostThreads, std::memory_order_relaxed);
}

}  // namespace layernorm::tensorflow
