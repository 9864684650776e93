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
  if (axes_.take(sizes.count, definition_.axes, definition_.axes_count) != Axes::Mistake::none)
    return fail("axis is out of range for x, or named twice");
  rows_ = axes_.rows(sizes.size);
  if (rows_ > kMostRows) return fail("x has more rows than there is memory for");
  normalized_.count = static_cast<int>(axes_.normalized_sizes(sizes.size, normalized_.size));
  const bool any_parameter = definition_.has_weight || definition_.has_bias;
  problem_.parameter_type = any_parameter ? definition_.parameter_type : problem_.type;
  return true;
}

bool Call::check_as_x(const char* name, const OwnedTensor& tensor) {
  if (failed_) return false;
  DataType type;
  return (tensor.has_sizes(sizes()) && tensor.data_type(&type) && type == problem_.type) ||
         fail(" needs x's sizes and type", name);
}

bool Call::take_parameter(const char* name, int index, Parameter* parameter) {
  if (failed_) return false;
  if (!accepts_parameter(problem_.type, problem_.parameter_type))
    return fail(" needs the type of x, or float32 beside a 16-bit x", name);
  parameter->tensor = input(index);
  if (failed_) return false;
  const Sizes& aligned = parameter->aligned;
  if (!parameter->tensor.sizes(&parameter->sizes) || !align(parameter) ||
      !axes_.take_parameter(sizes().size, aligned.count, aligned.size))
    return fail(" needs the sizes of x along the normalized axes, and x's or 1 along others", name);
  for (int axis = 0; axis < sizes().count; ++axis) varies_ |= axes_.varying[axis];
  return true;
}

// The normalized shape, or one that is aligned right.
bool Call::align(Parameter* parameter) const {
  const Sizes& own = parameter->sizes;
  Sizes& aligned = parameter->aligned;
  aligned.count = sizes().count;
  const bool is_normalized = own.count == normalized_.count;
  if (!is_normalized && own.count > aligned.count) return false;
  int next = 0;
  for (int axis = 0; axis < aligned.count; ++axis) {
    const bool has_axis =
        is_normalized ? axes_.normalized[axis] : axis >= aligned.count - own.count;
    aligned.size[axis] = has_axis ? own.size[next++] : 1;
  }
  return true;
}

bool Call::settle() {
  if (failed_) return false;
  if (is_empty()) return true;
  int64_t strides[kMostAxes];
  contiguous_strides(sizes().count, sizes().size, strides);
  layout_.order = choose_order(axes_, sizes().size, strides);
  layout_.copies = layout_.order.moves_axes;
  return true;
}

Layout Call::layout_of(const Parameter& parameter) const {
  Layout layout = {parameter.aligned, layout_.order, layout_.copies};
  Order& order = layout.order;
  for (int64_t at = 0; at < order.count; ++at) {
    const int64_t axis = order.axis[at];
    if (!axes_.normalized[axis] && !axes_.varying[axis]) order.sizes[at] = 1;
    layout.copies |= order.sizes[at] != parameter.aligned.size[axis];
  }
  return layout;
}

Collapsed Call::to_read(const OwnedTensor& tensor) const {
  return tensor ? Collapsed::to_read(layout_, tensor.data(), size_of(problem_.type)) : Collapsed();
}

Collapsed Call::to_write(const OwnedTensor& tensor) const {
  return tensor ? Collapsed::to_write(layout_, tensor.data(), size_of(problem_.type)) : Collapsed();
}

Collapsed Call::to_read(const Parameter& parameter) const {
  if (!parameter.tensor) return {};
  const void* data = parameter.tensor.data();
  // Parameters that vary along no axis are in order.
  const Layout layout = varies_ ? layout_of(parameter) : Layout();
  return Collapsed::to_read(layout, data, size_of(problem_.parameter_type));
}

Collapsed Call::to_write(const OwnedTensor& gradient, const Parameter& parameter) const {
  if (!gradient) return {};
  const Layout layout = varies_ ? layout_of(parameter) : Layout();
  return Collapsed::to_write(layout, gradient.data(), size_of(problem_.parameter_type));
}

void Call::flush(const Collapsed& gradient, const Parameter& parameter) const {
  if (varies_) gradient.flush(layout_of(parameter));
}

bool Call::place(const Placed* tensors, int count) {
  Ordered ordered[kMostTensors];
  Order::Placed placed[kMostTensors];
  for (int at = 0; at < count; ++at) {
    ordered[at] = tensors[at].tensor.ordered(layout_);
    placed[at] = {&ordered[at], &tensors[at].array};
  }
  return layout_.order.place(placed, count, problem_) ||
         fail(
             "weight and bias vary along too many axes of x with others between them, expected at "
             "most four groups: move the axes of x together");
}

OwnedTensor Call::output_as_x(int index, int input) {
  int forwarded = -1;
  Tensor* tensor =
      c_api.TF_ForwardInputOrAllocateOutput(context_, &input, input == kNoInput ? 0 : 1, index,
                                            sizes().size, sizes().count, &forwarded, status_);
  check(tensor);
  OwnedTensor result(tensor);
  if (result && forwarded < 0) ask_for_huge_pages(result.data(), result.bytes());
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

Sizes Call::scales_sizes() const {
  Sizes sizes = this->sizes();
  for (int axis = 0; axis < sizes.count; ++axis)
    if (axes_.normalized[axis]) sizes.size[axis] = 1;
  return sizes;
}

Statistics Call::statistics_at(const OwnedTensor& tensor) const {
  return statistics_in(tensor.data(), rows_, compute_type(problem_.type), definition_.centered);
}

bool Call::fail(const char* mistake, const char* of) {
  // No std::string: nothing may be thrown through TensorFlow.
  char message[160];
  std::snprintf(message, sizeof(message), "layernorm: %s%s", of, mistake);
  c_api.TF_SetStatus(status_, kInvalidArgument, message);
  return report();
}

bool Call::has_memory_for(std::initializer_list<const Collapsed*> copies) {
  for (const Collapsed* each : copies)
    if (each->failed()) return fail_for_memory();
  return true;
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
