// One call that TensorFlow makes of a kernel: what its node says, its tensors, and what went wrong.
#pragma once

#include <memory>

#include "tensor.h"

namespace layernorm::tensorflow {

// What the attributes of a node say.
struct Definition {
  int64_t axis[kMostAxes];
  int axes;
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
  const Sizes& sizes() const { return sizes_; }
  Problem& problem() { return problem_; }
  const Problem& problem() const { return problem_; }
  bool is_empty() const { return sizes_.elements() == 0; }

  Held input(int index);

  // False where something was wrong, of which TensorFlow has been told.
  bool take_x(const Held& x);
  bool take_parameter(const char* name, const Held& parameter);

  // y may lie where x does, if nothing else reads x after this node.
  Held output_as_x(int index, int input);
  Held output(int index, DataType type, const Sizes& sizes);

  // The statistics are (3, rows), mean, rstd and residual, or (1, rows), rstd, without centering.
  Sizes statistics_sizes() const;
  Statistics statistics_at(const Held& held) const;

  // False, and TensorFlow has been told.
  bool fail(const char* mistake, const char* of = "");
  bool fail_for_memory();
  bool failed() const { return failed_; }

 private:
  // Each call of TensorFlow's overwrites the status of the one before.
  void note(const Tensor* tensor);
  bool report();

  const Definition& definition_;
  KernelContext* context_;
  OwnedStatus status_;
  bool failed_ = false;
  Sizes sizes_;
  Layout layout_;
  Problem problem_ = {};
};

// A tensor of x's sizes as the kernels walk it: in place, or through a copy.
class Walked {
 public:
  static Walked to_read(const Call& call, const void* data, DataType type);
  static Walked to_write(const Call& call, void* data, DataType type);
  bool failed() const { return failed_; }  // no memory for the copy
  Array array(const Call& call) const { return call.layout().array(copy_ ? copy_.get() : data_); }
  void flush(const Call& call) const {
    if (copy_) call.layout().scatter(copy_.get(), data_, size_of(type_));
  }

 private:
  void* data_ = nullptr;
  DataType type_ = DataType::float32;
  std::unique_ptr<char[]> copy_;
  bool failed_ = false;
};

}  // namespace layernorm::tensorflow
