// Dense tensors as the kernels walk them.
#pragma once

#include "layer_norm.h"

namespace layernorm::tensorflow {

constexpr int kMostAxes = 64;

// An empty x may have any number of rows: beyond, the bytes of their statistics have no number.
constexpr int64_t kMostRows = int64_t{1} << 58;

struct Sizes {
  int count = 0;
  int64_t size[kMostAxes];

  int64_t elements() const;
};

// x's sizes seen as (outer, cols, inner). Where a kept axis lies between normalized ones, that is
// the shape of a copy with the normalized axes last.
class Layout {
 public:
  // False where `axis` names an axis that x has not, or one twice. An empty x has no shape here.
  bool find(const Sizes& x, const int64_t* axis, int count);

  const Shape& shape() const { return shape_; }
  bool needs_copy() const { return needs_copy_; }
  // Where cols is 0 too; kMostRows + 1 for all above.
  int64_t rows() const { return rows_; }
  // Of weight and bias.
  const Sizes& normalized() const { return normalized_; }
  Array array(void* data) const { return {data, shape_.cols * shape_.inner, shape_.inner}; }

  // Between a tensor of x's sizes and the copy.
  void gather(const void* tensor, void* copy, int64_t element_bytes) const;
  void scatter(const void* copy, void* tensor, int64_t element_bytes) const;

 private:
  Shape shape_ = {};
  int64_t rows_ = 1;
  bool needs_copy_ = false;
  Sizes normalized_;
  Sizes ordered_;               // x's sizes, the normalized ones last
  int64_t strides_[kMostAxes];  // x's, in that order
};

}  // namespace layernorm::tensorflow
