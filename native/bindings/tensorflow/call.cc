#include "call.h"

#include <cstdio>

#include "runtime/huge_pages.h"

namespace layernorm::tensorflow {

OwnedTensor Call::input(int index) {
  Tensor* tensor = nullptr;
  c_api.TF_GetInput(context_, index, &tensor, status_);
  check(tensor);
  return OwnedTensor(tensor);
}

bool Call::take_x(const OwnedTensor& x) {
  problem_.centered = definition_.centered;
  problem_.zero_centered_weight = definition_.zero_centered_weight;
  problem_.eps = definition_.eps;
  if (failed_) return false;
  Sizes& sizes = layout_.sizes;
  if (!x.data_type(&problem_.type) || !x.sizes(&sizes))
    return fail("x needs a type of float16, bfloat16, float32 or float64, and at most 64 axes");
  Axes axes;
  if (axes.take(sizes.count, definition_.axes, definition_.axes_count) != Axes::Mistake::none)
    return fail("axis is out of range for x, or named twice");
  rows_ = axes.rows(sizes.size);
  if (rows_ > kMostRows) return fail("x has more rows than there is memory for");
  normalized_.count = static_cast<int>(axes.normalized_sizes(sizes.size, normalized_.size));
  const bool any_parameter = definition_.has_weight || definition_.has_bias;
  problem_.parameter_type = any_parameter ? definition_.parameter_type : problem_.type;
  if (is_empty()) return true;
  int64_t strides[kMostAxes];
  contiguous_strides(sizes.count, sizes.size, strides);
  layout_.order = choose_order(axes, sizes.size, strides);
  problem_.shape = layout_.order.shape;
  return true;
}

bool Call::take_parameter(const char* name, const OwnedTensor& parameter) {
  if (failed_) return false;
  if (!accepts_parameter(problem_.type, problem_.parameter_type))
    return fail(" needs the type of x, or float32 beside a 16-bit x", name);
  if (!parameter.has_sizes(normalized_))
    return fail(" needs the sizes of x along the normalized axes", name);
  return true;
}

OwnedTensor Call::output_as_x(int index, int input) {
  int forwarded = -1;
  Tensor* tensor = c_api.TF_ForwardInputOrAllocateOutput(context_, &input, 1, index, sizes().size,
                                                         sizes().count, &forwarded, status_);
  check(tensor);
  OwnedTensor result(tensor);
  if (result && forwarded < 0)
    ask_for_huge_pages(result.data(), sizes().elements() * size_of(problem_.type));
  return result;
}

OwnedTensor Call::output(int index, DataType type, const Sizes& sizes) {
  const auto bytes = static_cast<size_t>(sizes.elements() * size_of(type));
  Tensor* tensor = c_api.TF_AllocateOutput(context_, index, to_code(type), sizes.size, sizes.count,
                                           bytes, status_);
  check(tensor);
  return OwnedTensor(tensor);
}

Sizes Call::statistics_sizes() const {
  Sizes sizes;
  sizes.count = 2;
  sizes.size[0] = statistics_count(definition_.centered);
  sizes.size[1] = rows_;
  return sizes;
}

Statistics Call::statistics_at(const OwnedTensor& tensor) const {
  return statistics_in(tensor.data(), rows_, compute_type(problem_.type), definition_.centered);
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

void Call::check(const Tensor* tensor) {
  if (!failed_ && (!tensor || !status_.ok())) report();
}

bool Call::report() {
  c_api.TF_OpKernelContext_Failure(context_, status_);
  failed_ = true;
  return false;
}

}  // namespace layernorm::tensorflow
