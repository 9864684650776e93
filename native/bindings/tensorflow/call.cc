#include "call.h"

#include <cstdio>
#include <new>

#include "runtime/huge_pages.h"

namespace layernorm::tensorflow {

Held Call::input(int index) {
  Tensor* tensor = nullptr;
  c_api.TF_GetInput(context_, index, &tensor, status_);
  note(tensor);
  return Held(tensor);
}

bool Call::take_x(const Held& x) {
  problem_.centered = definition_.centered;
  problem_.zero_centered_weight = definition_.zero_centered_weight;
  problem_.eps = definition_.eps;
  if (failed_) return false;
  if (!x.data_type(&problem_.type) || !x.sizes(&sizes_))
    return fail("x needs a type of float16, bfloat16, float32 or float64, and at most 64 axes");
  if (!layout_.find(sizes_, definition_.axis, definition_.axes))
    return fail("axis names an axis that x has not, or one twice");
  if (layout_.rows() > kMostRows) return fail("x has more rows than there is memory for");
  const bool any_parameter = definition_.has_weight || definition_.has_bias;
  problem_.parameter_type = any_parameter ? definition_.parameter_type : problem_.type;
  problem_.shape = layout_.shape();
  return true;
}

bool Call::take_parameter(const char* name, const Held& parameter) {
  if (failed_) return false;
  const DataType type = problem_.parameter_type;
  if (type != problem_.type && !(size_of(problem_.type) == 2 && type == DataType::float32))
    return fail(" needs the type of x, or float32 beside a 16-bit x", name);
  if (!parameter.has_sizes(layout_.normalized()))
    return fail(" needs the sizes of x along the normalized axes", name);
  return true;
}

Held Call::output_as_x(int index, int input) {
  int forwarded = -1;
  Tensor* tensor = c_api.TF_ForwardInputOrAllocateOutput(context_, &input, 1, index, sizes_.size,
                                                         sizes_.count, &forwarded, status_);
  note(tensor);
  Held result(tensor);
  if (result && forwarded < 0)
    ask_for_huge_pages(result.data(), sizes_.elements() * size_of(problem_.type));
  return result;
}

Held Call::output(int index, DataType type, const Sizes& sizes) {
  const auto bytes = static_cast<size_t>(sizes.elements() * size_of(type));
  Tensor* tensor = c_api.TF_AllocateOutput(context_, index, to_code(type), sizes.size, sizes.count,
                                           bytes, status_);
  note(tensor);
  return Held(tensor);
}

Sizes Call::statistics_sizes() const {
  Sizes sizes;
  sizes.count = 2;
  sizes.size[0] = definition_.centered ? 3 : 1;
  sizes.size[1] = layout_.rows();
  return sizes;
}

Statistics Call::statistics_at(const Held& held) const {
  auto* data = static_cast<char*>(held.data());
  if (!definition_.centered) return {nullptr, data, nullptr};
  const int64_t bytes = layout_.rows() * size_of(compute_type(problem_.type));
  return {data, data + bytes, data + 2 * bytes};
}

bool Call::fail(const char* mistake, const char* of) {
  // No std::string: nothing may be thrown through TensorFlow.
  char message[128];
  std::snprintf(message, sizeof(message), "layernorm: %s%s", of, mistake);
  c_api.TF_SetStatus(status_, kInvalidArgument, message);
  return report();
}

bool Call::fail_for_memory() {
  c_api.TF_SetStatus(status_, kResourceExhausted,
                     "layernorm: out of memory: give x fewer columns, or the process more");
  return report();
}

void Call::note(const Tensor* tensor) {
  if (!failed_ && (!tensor || !status_.ok())) report();
}

bool Call::report() {
  c_api.TF_OpKernelContext_Failure(context_, status_);
  failed_ = true;
  return false;
}

Walked Walked::to_read(const Call& call, const void* data, DataType type) {
  Walked result = to_write(call, const_cast<void*>(data), type);  // the kernels only read it
  if (result.copy_) call.layout().gather(data, result.copy_.get(), size_of(type));
  return result;
}

Walked Walked::to_write(const Call& call, void* data, DataType type) {
  Walked result;
  result.data_ = data;
  result.type_ = type;
  if (call.layout().needs_copy()) {
    const auto bytes = static_cast<size_t>(call.sizes().elements() * size_of(type));
    result.copy_.reset(new (std::nothrow) char[bytes]);
    result.failed_ = !result.copy_;
  }
  return result;
}

}  // namespace layernorm::tensorflow
