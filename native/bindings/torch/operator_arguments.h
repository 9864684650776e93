// An operator's arguments as PyTorch's stable interface passes them, and the axes that they name.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "tensor.h"

namespace layernorm::torch {

// The arguments of an operator, taken one by one; each is ours to release from then on.
class Arguments {
 public:
  explicit Arguments(const Value* stack) : next_(stack) {}

  Tensor tensor() { return Tensor(reinterpret_cast<TensorHandle>(*next_++)); }
  Tensor optional_tensor() {
    auto* held = reinterpret_cast<Value*>(*next_++);
    if (!held) return Tensor();
    Tensor result(reinterpret_cast<TensorHandle>(*held));
    delete held;
    bool is_defined = false;  // autograd passes an undefined tensor for an absent one
    check(c_api.aoti_torch_is_defined(result.handle(), &is_defined));
    return is_defined ? std::move(result) : Tensor();
  }
  double number() {
    double value;
    std::memcpy(&value, next_++, sizeof(value));
    return value;
  }
  int64_t integer() { return static_cast<int64_t>(*next_++); }
  bool flag() { return as_flag(*next_++); }
  // At most kMostAxes integers or flags; returns how many there are.
  int64_t list(int64_t* values) {
    auto* handle = reinterpret_cast<ListHandle>(*next_++);
    size_t size = 0;
    Error error = c_api.torch_list_size(handle, &size);
    for (size_t at = 0; error == 0 && at < size && at < kMostAxes; ++at) {
      Value value = 0;
      error = c_api.torch_list_get_item(handle, at, &value);
      values[at] = static_cast<int64_t>(value);
    }
    c_api.torch_delete_list(handle);
    check(error);
    return static_cast<int64_t>(size);
  }
  void flags(bool* values, int64_t count) {
    int64_t given[kMostAxes] = {};
    check(list(given) == count, "layernorm: a list of flags has the wrong length");
    for (int64_t at = 0; at < count; ++at) values[at] = as_flag(static_cast<Value>(given[at]));
  }

 private:
  static bool as_flag(Value value) {
    bool flag;
    std::memcpy(&flag, &value, sizeof(flag));
    return flag;
  }
  const Value* next_;
};

inline Value result(Tensor tensor) { return reinterpret_cast<Value>(tensor.release()); }

inline void check_count(int64_t axes) {
  check(axes <= kMostAxes, "layernorm: x has more than 64 axes");
}

inline Axes axes_of(const int64_t* given, int64_t count, int64_t axes) {
  check_count(axes);
  check(count >= 1 && count <= axes, "layernorm: axis names no axis of x, or more than there are");
  Axes result;
  const Axes::Mistake mistake = result.take(axes, given, count);
  check(mistake != Axes::Mistake::out_of_range, "layernorm: axis is out of range for x");
  check(mistake != Axes::Mistake::repeated, "layernorm: axis names an axis of x twice");
  return result;
}

// Sizes as PyTorch writes them: [2, 3].
inline std::string text_of(int64_t count, const int64_t* sizes) {
  std::string text = "[";
  for (int64_t at = 0; at < count; ++at) text += (at ? ", " : "") + std::to_string(sizes[at]);
  return text + "]";
}

// PyTorch's normalized_shape: the last sizes of x.
inline Axes trailing_axes(const int64_t* normalized_shape, int64_t count, const View& x) {
  check_count(x.axes);
  check(count >= 1,
        "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one "
        "element, but got normalized_shape = []");
  const std::string shape = text_of(std::min(count, kMostAxes), normalized_shape);
  const std::string message = "Given normalized_shape=" + shape +
                              ", expected input with shape [*, " + shape.substr(1) +
                              ", but got input of size" + text_of(x.axes, x.sizes);
  const bool fits = count <= x.axes && std::equal(normalized_shape, normalized_shape + count,
                                                  x.sizes + x.axes - count);
  check(fits, message.c_str());
  int64_t given[kMostAxes];
  for (int64_t at = 0; at < count; ++at) given[at] = at - count;
  return axes_of(given, count, x.axes);
}

}  // namespace layernorm::torch
