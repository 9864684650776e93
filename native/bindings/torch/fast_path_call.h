// The calls that the fast path serves, their tensors read through DLPack's C exchange interface.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <initializer_list>

#include "bindings/arguments.h"
#include "dlpack.h"
#include "view.h"

namespace layernorm::torch {

// Null until open_fast_path() has found it: no call is served then.
extern const dlpack::Exchange* exchange;

// Takes from PyTorch what the fast path needs, by name; ValueError where a name is missing. A
// PyTorch without DLPack's exchange interface leaves the fast path closed.
bool open_fast_path(PyObject* parts);

// Whether no mode, transform, tracer, profiler or forward-mode level needs to see our operators.
bool is_unwatched();

// False for anything but a strided torch.Tensor or Parameter on the CPU, of our types, not empty.
// Does not ask is_negated(), which costs more.
bool view_of(PyObject* object, View* view);

// Whether the tensor (or None) is a negated view. DLPack ignores the negation.
bool is_negated(PyObject* tensor);

// Whether grad mode is on and the tensor (or None) requires a gradient.
bool wants_gradient(PyObject* tensor);

// The arguments of every call: x, weight, bias, normalized_shape or axis, eps, centered,
// zero_centered_weight. A forward may have a residual (or None) after them, and then a gate.
constexpr Py_ssize_t kFastPathArguments = 7;
constexpr Py_ssize_t kGateArguments = 3;  // gate, is_silu, norm_before_gate

// Over normalized_shape, as in PyTorch, eps is a float, or None for RMS normalization; over axes, as in
// layernorm's own functions, what python::take_eps() takes.
using python::Over;

struct FastCall {
  // Those but x: without data where absent. Weight and bias are contiguous.
  View x, weight, bias, residual, gate;
  PyObject *x_object, *weight_object, *bias_object;
  PyObject *residual_object = Py_None, *gate_object = Py_None;
  int64_t axes = 0;  // how many of the last are normalized
  int64_t cols = 1;

  // Leaves the shape and the arrays to place().
  bool take(PyObject* const* arguments, Over over, Problem& problem);
  bool take_residual(PyObject* object);
  // Takes kGateArguments.
  bool take_gate(PyObject* const* arguments, Gate& of_job);
  bool take_like_x(PyObject* object, View* view) const;
  struct Placed {
    const View* tensor;  // of x's sizes; null: one that is still to be allocated, contiguous
    Array* array;        // null: skip it
  };
  // Fills in the arrays, the problem's shape and the strides of statistics, which are contiguous.
  // False where a row is not contiguous, or the rows lie on too many axes.
  bool place(std::initializer_list<Placed> tensors, Problem& problem) const;
  const int64_t* normalized_shape() const { return x.sizes + x.axes - axes; }
  int64_t rows() const { return x.elements() / cols; }
  bool wants_gradient() const;
  bool has_negated() const;

 private:
  bool take_parameter(PyObject* object, View* parameter) const;
  bool place_with_strides(std::initializer_list<Placed> tensors, Problem& problem) const;
};

}  // namespace layernorm::torch
