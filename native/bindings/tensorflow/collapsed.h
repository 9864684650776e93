// Tensors of x's sizes as the kernels read and write them.
#pragma once

#include <memory>

#include "layout.h"
#include "tensor.h"

namespace layernorm::tensorflow {

// A tensor's sizes, and the order of its axes in which the kernels take them. They take more than
// one element where the tensor has one: it is repeated.
struct Layout {
  Sizes sizes;
  Order order;
  bool copies = false;  // the kernels take a copy: axes are moved, or elements repeated
};

// A tensor in place, or a copy: one that is read is copied at once, one that is written by flush().
class Collapsed {
 public:
  static Collapsed to_read(const Layout& layout, const void* data, int64_t element_bytes);
  static Collapsed to_write(const Layout& layout, void* data, int64_t element_bytes);
  bool failed() const { return failed_; }  // no memory for the copy
  void* data() const { return copy_ ? copy_.get() : data_; }
  Ordered ordered(const Layout& layout) const;
  void flush(const Layout& layout) const;

 private:
  void* data_ = nullptr;
  int64_t element_bytes_ = 0;
  std::unique_ptr<char[]> copy_;
  bool failed_ = false;
};

}  // namespace layernorm::tensorflow
