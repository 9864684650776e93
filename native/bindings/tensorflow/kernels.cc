#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "call.h"
#include "runtime/thread_pool.h"

namespace layernorm::tensorflow {
namespace {

std::atomic<int> most_threads{kMostThreads};

Threads threads() { return pool_threads(most_threads.load(std::memory_order_relaxed)); }

// What comes beside x.
enum class Beside { nothing, residual, gate };

void norm(void* kernel, KernelContext* context, Beside beside) {
  const bool adds = beside == Beside::residual, gated = beside == Beside::gate;
  Call call(kernel, context);
  const Definition& definition = call.definition();
  Parameter weight, bias;
  {
    // Released before the outputs are allocated: they take the memory of x and the residual only if
    // nothing else refers to it.
    const OwnedTensor x = call.input(0);
    if (!call.take_x(x)) return;
    if (adds && !call.check_as_x("residual", call.input(1))) return;
    if (gated && !call.check_as_x("gate", call.input(1))) return;
  }
  int next = adds || gated ? 2 : 1;
  if (definition.has_weight && !call.take_parameter("weight", next++, &weight)) return;
  if (definition.has_bias && !call.take_parameter("bias", next++, &bias)) return;
  if (!call.settle()) return;
  Problem& problem = call.problem();
  const OwnedTensor y = call.output_as_x(0, 0);
  const OwnedTensor statistics =
      call.output(1, compute_type(problem.type), call.statistics_sizes());
  OwnedTensor other, total;  // the other is the residual or the gate
  if (adds) total = call.output_as_x(2, 1);
  if (adds || gated) other = call.input(1);
  const OwnedTensor x = call.input(0);
  if (call.failed()) return;
  problem.statistics = call.statistics_at(statistics);
  if (call.is_empty()) {
    const Sizes sizes = call.statistics_sizes();
    const int64_t bytes = sizes.elements() * size_of(compute_type(problem.type));
    if (bytes > 0) std::memset(statistics.data(), 0, static_cast<size_t>(bytes));
    return;
  }
  const Layout& layout = call.layout();
  const Collapsed collapsed_x = call.to_read(x), collapsed_other = call.to_read(other),
                  collapsed_y = call.to_write(y), collapsed_total = call.to_write(total),
                  collapsed_weight = call.to_read(weight), collapsed_bias = call.to_read(bias);
  if (!call.has_memory_for({&collapsed_x, &collapsed_other, &collapsed_y, &collapsed_total,
                            &collapsed_weight, &collapsed_bias}))
    return;
  Forward job = {};
  job.gate = {{}, definition.activation, definition.norm_first};
  const Call::Placed placed[] = {{collapsed_x, adds ? job.addends[0] : problem.x},
                                 {collapsed_y, job.y},
                                 {collapsed_other, adds ? job.addends[1] : job.gate.values},
                                 {collapsed_total, problem.x}};
  if (!call.place(placed, adds ? 4 : gated ? 3 : 2)) return;
  problem.weight = collapsed_weight.data();
  job.problem = problem;
  job.bias = collapsed_bias.data();
  if (forward(job, threads()) != layernorm::Status::ok) {
    call.fail_for_memory();
    return;
  }
  collapsed_y.flush(layout);
  collapsed_total.flush(layout);
}

void backward_of_norm(void* kernel, KernelContext* context, Beside beside) {
  const bool adds = beside == Beside::residual, gated = beside == Beside::gate;
  Call call(kernel, context);
  const Definition& definition = call.definition();
  const OwnedTensor x = call.input(1);
  if (!call.take_x(x)) return;
  Problem& problem = call.problem();
  // dy is not kept: dx takes its memory only if nothing else refers to it.
  if (!call.check_as_x("dy", call.input(0))) return;
  const OwnedTensor statistics = call.input(2);
  if (call.failed()) return;
  DataType statistics_type;
  if (!statistics.has_sizes(call.statistics_sizes()) || !statistics.data_type(&statistics_type) ||
      statistics_type != compute_type(problem.type)) {
    call.fail("the statistics are not those of this x");
    return;
  }
  OwnedTensor other;  // dtotal or the gate
  if (adds || gated) {
    other = call.input(3);
    if (!call.check_as_x(adds ? "dtotal" : "gate", other)) return;
  }
  Parameter weight, bias;
  int next = adds || gated ? 4 : 3;
  if (definition.has_weight && !call.take_parameter("weight", next++, &weight)) return;
  if (gated && definition.has_bias && !call.take_parameter("bias", next, &bias)) return;
  const Parameter& like_dbias = bias.tensor ? bias : weight;
  if (!call.settle()) return;
  const OwnedTensor dx = call.output_as_x(0, 0);
  OwnedTensor dgate, dweight, dbias;
  next = 1;
  if (gated) dgate = call.output_as_x(next++, Call::kNoInput);
  if (definition.has_weight) dweight = call.output_as(next++, weight);
  if (definition.has_bias) dbias = call.output_as(next++, like_dbias);
  const OwnedTensor dy = call.input(0);
  if (call.failed()) return;
  if (call.is_empty()) {
    const auto clear = [&](const OwnedTensor& gradient, const Parameter& parameter) {
      const int64_t bytes = call.sizes_as(parameter).elements() * size_of(problem.parameter_type);
      if (gradient && bytes > 0) std::memset(gradient.data(), 0, static_cast<size_t>(bytes));
    };
    clear(dweight, weight);
    clear(dbias, like_dbias);
    return;
  }
  problem.statistics = call.statistics_at(statistics);
  const Layout& layout = call.layout();
  const Collapsed collapsed_x = call.to_read(x), collapsed_dy = call.to_read(dy),
                  collapsed_other = call.to_read(other), collapsed_dx = call.to_write(dx),
                  collapsed_dgate = call.to_write(dgate), collapsed_weight = call.to_read(weight),
                  collapsed_bias = call.to_read(bias),
                  collapsed_dweight = call.to_write(dweight, weight),
                  collapsed_dbias = call.to_write(dbias, like_dbias);
  if (!call.has_memory_for({&collapsed_x, &collapsed_dy, &collapsed_other, &collapsed_dx,
                            &collapsed_dgate, &collapsed_weight, &collapsed_bias,
                            &collapsed_dweight, &collapsed_dbias}))
    return;
  Backward job = {};
  job.gate = {{}, definition.activation, definition.norm_first};
  const Call::Placed placed[] = {{collapsed_x, problem.x},
                                 {collapsed_dy, job.dy},
                                 {collapsed_dx, job.dx},
                                 {collapsed_other, adds ? job.dtotal : job.gate.values},
                                 {collapsed_dgate, job.dgate}};
  if (!call.place(placed, gated ? 5 : adds ? 4 : 3)) return;
  problem.weight = collapsed_weight.data();
  job.problem = problem;
  job.dweight = collapsed_dweight.data();
  job.dbias = collapsed_dbias.data();
  job.bias = collapsed_bias.data();
  if (backward(job, threads()) != layernorm::Status::ok) {
    call.fail_for_memory();
    return;
  }
  collapsed_dx.flush(layout);
  collapsed_dgate.flush(layout);
  call.flush(collapsed_dweight, weight);
  call.flush(collapsed_dbias, like_dbias);
}

template <class C>
void fill_with_smallest(void* scales, int64_t count) {
  std::fill_n(static_cast<C*>(scales), count, std::numeric_limits<C>::min());
}

void* create(KernelConstruction* construction, bool gated, bool quantized) {
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
  std::unique_ptr<Definition> definition(new (std::nothrow) Definition());
  if (!definition) {
    c_api.TF_SetStatus(status, kResourceExhausted, "layernorm: out of memory for a kernel");
    c_api.TF_OpKernelConstruction_Failure(construction, status);
    return nullptr;
  }
  int32_t total = 0;
  c_api.TF_OpKernelConstruction_GetAttrSize(construction, "axis", &definition->axes_count, &total,
                                            status);
  if (status.ok() && (definition->axes_count < 1 || definition->axes_count > kMostAxes))
    c_api.TF_SetStatus(status, kInvalidArgument, "layernorm: axis names no axis, or too many");
  if (status.ok())
    c_api.TF_OpKernelConstruction_GetAttrInt64List(construction, "axis", definition->axes,
                                                   definition->axes_count, status);
  // An attribute of type float has 32 bits, so the 64 of eps come as an int.
  const int64_t eps_bits = integer("eps_bits");
  std::memcpy(&definition->eps, &eps_bits, sizeof(definition->eps));
  definition->centered = flag("centered");
  definition->zero_centered_weight = flag("zero_centered_weight");
  if (gated) {
    definition->activation = flag("silu") ? Activation::silu : Activation::sigmoid;
    definition->norm_first = flag("norm_before_gate");
  }
  definition->has_weight = integer("weights") == 1;
  definition->has_bias = integer("biases") == 1;
  const auto type = [&](const char* name, auto* known, const char* mistake) {
    int32_t code = 0;
    if (status.ok()) c_api.TF_OpKernelConstruction_GetAttrType(construction, name, &code, status);
    if (status.ok() && !from_code(code, known))
      c_api.TF_SetStatus(status, kInvalidArgument, mistake);
  };
  type("P", &definition->parameter_type, "layernorm: P is not a type of parameters");
  if (quantized) type("Q", &definition->quantized_type, "layernorm: Q is not a type of 8 bits");
  if (status.ok()) return definition.release();
  c_api.TF_OpKernelConstruction_Failure(construction, status);
  return nullptr;
}

}  // namespace

void* create_kernel(KernelConstruction* construction) { return create(construction, false, false); }

void* create_gated_kernel(KernelConstruction* construction) {
  return create(construction, true, false);
}

void* create_quantized_kernel(KernelConstruction* construction) {
  return create(construction, false, true);
}

void delete_kernel(void* kernel) { delete static_cast<Definition*>(kernel); }

void compute_norm(void* kernel, KernelContext* context) { norm(kernel, context, Beside::nothing); }

void compute_norm_of_sum(void* kernel, KernelContext* context) {
  norm(kernel, context, Beside::residual);
}

void compute_gated_norm(void* kernel, KernelContext* context) {
  norm(kernel, context, Beside::gate);
}

void compute_quantized_norm(void* kernel, KernelContext* context) {
  Call call(kernel, context);
  const Definition& definition = call.definition();
  const OwnedTensor x = call.input(0);
  if (!call.take_x(x)) return;
  Parameter weight, bias;
  const int after_weight = definition.has_weight ? 3 : 2;
  if (definition.has_weight && !call.take_parameter("weight", 2, &weight)) return;
  if (definition.has_bias && !call.take_parameter("bias", after_weight, &bias)) return;
  if (!call.settle()) return;
  Problem& problem = call.problem();
  const DataType scale_type = compute_type(problem.type);
  const OwnedTensor scale = call.input(1);
  if (call.failed()) return;
  DataType given_type;
  const int64_t given = scale.bytes() / size_of(scale_type);
  if (!scale.data_type(&given_type) || given_type != scale_type || given > 1) {
    call.fail("scale needs one number, of the type of the scales of x's rows");
    return;
  }
  const Sizes none = {1, {0}};
  const Sizes sizes = given ? none : call.scales_sizes();
  const OwnedTensor q = call.output_as_x(0, Call::kNoInput);
  const OwnedTensor scales = call.output(1, scale_type, sizes);
  if (call.failed()) return;
  if (call.is_empty()) {
    const auto fill =
        scale_type == DataType::float64 ? fill_with_smallest<double> : fill_with_smallest<float>;
    return fill(scales.data(), sizes.elements());
  }
  const Collapsed collapsed_x = call.to_read(x), collapsed_weight = call.to_read(weight),
                  collapsed_bias = call.to_read(bias),
                  collapsed_q = Collapsed::to_write(call.layout(), q.data(), 1);
  if (!call.has_memory_for({&collapsed_x, &collapsed_weight, &collapsed_bias, &collapsed_q}))
    return;
  Forward job = {};
  Quantized& quantized = job.quantized;
  quantized.type = definition.quantized_type;
  if (given)
    quantized.given_scale = scale.data();
  else
    quantized.scales = scales.data();
  const Call::Placed placed[] = {{collapsed_x, problem.x}, {collapsed_q, quantized.values}};
  if (!call.place(placed, 2)) return;
  problem.weight = collapsed_weight.data();
  job.problem = problem;
  job.bias = collapsed_bias.data();
  if (forward(job, threads()) != layernorm::Status::ok) {
    call.fail_for_memory();
    return;
  }
  collapsed_q.flush(call.layout());
}

void compute_backward(void* kernel, KernelContext* context) {
  backward_of_norm(kernel, context, Beside::nothing);
}

void compute_backward_of_sum(void* kernel, KernelContext* context) {
  backward_of_norm(kernel, context, Beside::residual);
}

void compute_gated_backward(void* kernel, KernelContext* context) {
  backward_of_norm(kernel, context, Beside::gate);
}

void bound_threads(int most) {
  most_threads.store(most > 0 ? most : kMostThreads, std::memory_order_relaxed);
}

}  // namespace layernorm::tensorflow
