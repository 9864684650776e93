// The work of every operator: check the tensors, allocate the results, run the kernels.
#pragma once

#include "saved_statistics.h"
#include "tensor.h"

namespace layernorm::torch {

// What the forward and the backward of each operator have in common. weight and bias, which may be
// absent, have the normalized shape; or as many axes as x, with x's size or 1 along kept ones, both
// alike: along the former they vary.
struct Call {
  Tensor x, weight, bias;
  Tensor addend;  // of a forward: x + addend is normalized; or absent
  Tensor gate;    // or absent, as is then the rest
  Activation activation = Activation::silu;
  bool norm_before_gate = true;
  View view;  // of x
  Axes axes;
  Problem problem = {};
  Order order;

  // Fills in order, and problem's types and shape. Raises PyTorch's RuntimeError.
  void check_tensors();
  void check_like_x(const Tensor& given, const char* message) const;
  bool is_empty() const { return view.elements() == 0; }
  DataType compute() const { return compute_type(problem.type); }
  int64_t rows() const { return axes.rows(view.sizes); }

  // y or dx: with x's strides if x is dense, else contiguous; or contiguous, as PyTorch's own.
  Tensor empty_as_x(bool contiguous) const;
  // A gradient of weight or bias. Both and their gradients are contiguous in the kernels' order.
  Tensor empty_parameter() const;
  Order parameter_order() const;
  Tensor empty_statistics(DataType type) const;
  // So many numbers of each row, in double: (count, statistics).
  Tensor empty_numbers(int64_t count) const;
  int64_t numbers(SplitRows::Step step) const;
  SavedRows saved_rows(bool for_aten) const;
  // A mean, rstd or residual that was saved, as the kernels read it.
  Tensor statistics(Tensor given) const;

 private:
  int64_t statistics_sizes_[kMostAxes];
  bool has_kept_axes_ = false;                    // weight and bias have as many axes as x
  int64_t parameter_sizes(int64_t* sizes) const;  // returns how many there are

  void check_parameter(const char* name, const Tensor& parameter, DataType* type);
};

struct ForwardResults {
  Tensor y, mean, rstd, residual;
  Tensor total;  // x + addend; absent without one
};

// `for_aten`: with a contiguous y, and mean and rstd as PyTorch's own autograd saves them.
ForwardResults run_forward(Call& call, bool for_aten);

struct QuantizedResults {
  Tensor q, scales;  // contiguous; q as int8, whatever its type
};

// With a given scale, of one element of the compute type, the scales are absent.
QuantizedResults run_quantized(Call& call, const Tensor& given_scale, int64_t type);

// A step over split rows: returns the moments, y, the sums or dx. `statistics` and `means` are what
// the step reads; they, dy and dtotal may be absent.
Tensor run_split_rows(Call& call, SplitRows::Step step, const Tensor& dy, const Tensor& dtotal,
                      Tensor statistics, Tensor means);

struct BackwardResults {
  Tensor dx, dweight, dbias, dgate;  // absent: not wanted
};

// `saved` are mean, rstd and residual; an absent residual is recomputed. dtotal, which may be
// absent, is added to dx; not beside a gate. `need`: dx, dweight, dbias, dgate.
BackwardResults run_backward(Call& call, const Tensor& dy, const Tensor& dtotal, Tensor (&saved)[3],
                             const bool (&need)[4], bool for_aten);

}  // namespace layernorm::torch
