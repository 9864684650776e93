// One call that TensorFlow makes of a kernel: its node's attributes, its tensors, its failure.
#pragma once

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
};

class Call {
 public:
  Call(void* kernel, KernelContext* context)
      : definition_(*static_cast<const Definition*>(kernel)), context_(context) {}

  const Definition& definition() const { return definition_; }
  const Layout& layout() const { return layout_; }
  const Sizes& sizes() const { return layout_.sizes; }
  // The shape of weight and bias.
  const Sizes& normalized_sizes() const { return normalized_; }
  Problem& problem() { return problem_; }
  bool is_empty() const { return sizes().elements() == 0; }

  OwnedTensor input(int index);

  // False after a failure, which TensorFlow has been told.
  bool take_x(const OwnedTensor& x);
  bool take_parameter(const char* name, const OwnedTensor& parameter);

  // In x's memory, if nothing else reads x after this node.
  OwnedTensor output_as_x(int index, int input);
  OwnedTensor output(int index, DataType type, const Sizes& sizes);

  // The statistics are (3, rows), mean, rstd and residual, or (1, rows), rstd, without centering.
  Sizes statistics_sizes() const;
  Statistics statistics_at(const OwnedTensor& tensor) const;

  // Tell TensorFlow; false.
  bool fail(const char* mistake, const char* of = "");
  bool fail_for_memory();
  bool failed() const { return failed_; }

 private:
  // After each call of TensorFlow's, which overwrites the status of the one before.
  void check(const Tensor* tensor);
  bool report();

  const Definition& definition_;
  KernelContext* context_;
  OwnedStatus status_;
  bool failed_ = false;
  Layout layout_;  // an empty x has no order
  int64_t rows_ = 0;
  Sizes normalized_;
  Problem problem_ = {};
};

}  // namespace layernorm::tensorflow
