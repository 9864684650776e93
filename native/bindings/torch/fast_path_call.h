// Which calls are plain, and what they say: tensors read through DLPack's C exchange interface.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "dlpack.h"
#include "layout.h"

namespace layernorm::torch {

// Null until open_fast_path() has found it: the short way is closed.
extern const dlpack::Exchange* exchange;

// Whether no mode, transform, tracer, profiler or forward-mode level needs to see our operators.
bool is_unwatched();

// A tensor that the kernels can walk as it lies.
struct Plain {
  dlpack::Tensor view = {};
  DataType type = DataType::float32;

  // False for anything but a contiguous torch.Tensor or Parameter on the CPU, of our types, not
  // empty. Takes negated views, which are for is_negated() to find: that costs more.
  bool take(PyObject* object);
  explicit operator bool() const { return view.data != nullptr; }
  void* data() const { return static_cast<char*>(view.data) + view.byte_offset; }
  int64_t elements() const;
  int64_t bytes() const { return elements() * size_of(type); }
  bool has_sizes(const int64_t* sizes, int64_t count) const;
  // Whether they share memory.
  bool overlaps(const Plain& other) const;

 private:
  bool take_type();
  bool is_contiguous() const;
};

// What every call begins with: x, weight, bias, normalized_shape or axis, eps, centered,
// zero_centered_weight.
constexpr Py_ssize_t kFastPathArguments = 7;

// What x is normalized over: its last sizes, as PyTorch's functions say it, with a float as eps (or
// None, for RMS normalization); or axes, as layernorm's say it.
enum class Over { normalized_shape, axes };

struct FastCall {
  Plain x, weight, bias;
  PyObject *x_object, *weight_object, *bias_object;
  int64_t axes = 0;  // how many of the last are normalized
  int64_t cols = 1;

  bool take(PyObject* const* arguments, Over over, Problem& problem);
  const int64_t* sizes() const { return x.view.shape + x.view.ndim - axes; }  // the normalized ones
  int64_t rows() const { return x.elements() / cols; }
  bool wants_gradient() const;
  bool has_negated() const;
};

// Whether the tensor (or None) is a negated view. DLPack gives the memory of one as it is.
bool is_negated(PyObject* tensor);

// Whether grad mode is on, and the tensor (or None) asks for its gradient.
bool wants_gradient(PyObject* tensor);

}  // namespace layernorm::torch
