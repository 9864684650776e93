// One call that TensorFlow makes of a kernel: its node's attributes, its tensors, its failure.
#pragma once

#include <initializer_list>

#include "collapsed.h"
#include "tensor.h"

namespace layernorm::tensorflow {

// The attributes of a node.
struct Definition {
  int64_t axes[kMostAxes];
  int axes_count;
  double eps;
  bool centered;
  bool zero_centered_weight;
  bool has_weight;
  bool has_bias;
  DataType parameter_type;  // where there is a parameter
  // Of an operation with a gate.
  Activation activation;
  bool norm_first;
  // Of one that quantizes.
  QuantizedType quantized_type;
};

// weight or bias, or without a tensor an absent one.
struct Parameter {
  OwnedTensor tensor;
  Sizes sizes;    // its own
  Sizes aligned;  // with all of x's axes: those along which it does not vary are 1
};

class Call {
 public:
  Call(void* kernel, KernelContext* context)
      : definition_(*static_cast<const Definition*>(kernel)), context_(context) {}

  const Definition& definition() const { return definition_; }
  const Layout& layout() const { return layout_; }
  const Sizes& sizes() const { return layout_.sizes; }
  Problem& problem() { return problem_; }
  bool is_empty() const { return sizes().elements() == 0; }

  OwnedTensor input(int index);

  // False after a failure, which TensorFlow has been told. x comes first, and settle(), which
  // chooses the layout, after the parameters.
  bool take_x(const OwnedTensor& x);
  bool check_as_x(const char* name, const OwnedTensor& tensor);
  bool take_parameter(const char* name, int index, Parameter* parameter);
  bool settle();

  // Tensors of x's sizes; of no data if absent.
  Collapsed to_read(const OwnedTensor& tensor) const;
  Collapsed to_write(const OwnedTensor& tensor) const;
  // weight and bias, repeated along axes where only the other varies; of no data if absent.
  Collapsed to_read(const Parameter& parameter) const;
  // The sizes of the gradients: the parameter's, or the normalized ones if it is absent.
  const Sizes& sizes_as(const Parameter& parameter) const {
    return parameter.tensor ? parameter.sizes : normalized_;
  }
  OwnedTensor output_as(int index, const Parameter& parameter) {
    return output(index, problem_.parameter_type, sizes_as(parameter));
  }
  Collapsed to_write(const OwnedTensor& gradient, const Parameter& parameter) const;
  void flush(const Collapsed& gradient, const Parameter& parameter) const;

  // Fills in the arrays, and the problem's shape.
  struct Placed {
    const Collapsed& tensor;
    Array& array;
  };
  bool place(const Placed* tensors, int count);

  // Of x's sizes and the type that the operation declares, in the memory of the input if one is
  // named and nothing else reads that after this node.
  static constexpr int kNoInput = -1;
  OwnedTensor output_as_x(int index, int input);
  OwnedTensor output(int index, DataType type, const Sizes& sizes);

  // The statistics are (3, rows), mean, rstd and residual, or (1, rows), rstd, without centering.
  Sizes statistics_sizes() const;
  Sizes scales_sizes() const;  // x's, with the normalized axes kept as 1
  Statistics statistics_at(const OwnedTensor& tensor) const;

  // Tell TensorFlow; false.
  bool fail(const char* mistake, const char* of = "");
  bool fail_for_memory();
  // False, and told, where the memory of one was not to be had.
  bool has_memory_for(std::initializer_list<const Collapsed*> copies);
  bool failed() const { return failed_; }

 private:
  bool align(Parameter* parameter) const;
  Layout layout_of(const Parameter& parameter) const;

  // After each call of TensorFlow's, which overwrites the status of the one before.
  void check(const Tensor* tensor);
  bool report();

  const Definition& definition_;
  KernelContext* context_;
  OwnedStatus status_;
  bool failed_ = false;
  Axes axes_;
  Layout layout_;  // without an order for an empty x
  Sizes normalized_;
  bool varies_ = false;  // weight or bias does, along kept axes
  int64_t rows_ = 0;
  Problem problem_ = {};
};

}  // namespace layernorm::tensorflow
