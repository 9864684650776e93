// An array with any strides, and poison between its elements.
#pragma once

#include <algorithm>
#include <vector>

#include "buffer.h"
#include "numbers.h"

namespace layernorm::test {

enum class Layout {
  dense,
  padded,      // gaps between the rows, and with inner > 1 between the columns
  cols_first,  // the normalized axis outermost; with inner == 1 the same as padded
  reversed,    // a negative outer stride
  broadcast,   // an outer stride of 0: for inputs only
};

struct Steps {
  int64_t outer, col;
};

inline Steps steps_of(Layout layout, const Shape& shape) {
  const int64_t dense = shape.cols * shape.inner;
  // 3 and 5, so that the rows' alignments all differ.
  const int64_t col = shape.inner == 1 ? 1 : shape.inner + 3;
  switch (layout) {
    case Layout::dense: return {dense, shape.inner};
    case Layout::padded: return {shape.cols * col + 5, col};
    case Layout::cols_first:
      if (shape.inner == 1) return {dense + 1, 1};
      return {shape.inner + 1, shape.outer * (shape.inner + 1) + 3};
    case Layout::reversed: return {-(shape.cols * col + 5), col};
    case Layout::broadcast: return {0, shape.inner};
  }
  return {};
}

class Tensor {
 public:
  Tensor() = default;
  Tensor(DataType type, const Shape& shape, Layout layout, Random& random)
      : type_(type), shape_(shape), steps_(steps_of(layout, shape)) {
    if (rows() == 0 || cols() == 0) return;
    const int64_t outer = (shape.outer - 1) * steps_.outer;
    const int64_t col = (shape.cols - 1) * steps_.col;
    first_ = -(std::min(outer, int64_t{0}) + std::min(col, int64_t{0}));
    const int64_t last = std::max(outer, int64_t{0}) + std::max(col, int64_t{0}) + shape.inner - 1;
    buffer_ = Buffer((first_ + last + 1) * size_of(type), size_of(type), random);
  }

  DataType type() const { return type_; }
  int64_t rows() const { return shape_.outer * shape_.inner; }
  int64_t cols() const { return shape_.cols; }
  const Buffer& buffer() const { return buffer_; }
  void* data() const { return static_cast<char*>(buffer_.data()) + first_ * size_of(type_); }
  Array array() const { return {data(), {steps_.outer}, steps_.col}; }
  Real get(int64_t row, int64_t col) const { return read(type_, buffer_.data(), index(row, col)); }
  void set(int64_t row, int64_t col, Real value) {
    write(type_, buffer_.data(), index(row, col), value);
  }
  const void* at(int64_t row, int64_t col) const {
    return static_cast<const char*>(buffer_.data()) + index(row, col) * size_of(type_);
  }
  bool same_element(const Tensor& other, int64_t row, int64_t col, int64_t other_row) const {
    return std::memcmp(at(row, col), other.at(other_row, col),
                       static_cast<size_t>(size_of(type_))) == 0;
  }
  bool same_row(const Tensor& other, int64_t row, int64_t other_row) const {
    for (int64_t col = 0; col < cols(); ++col)
      if (!same_element(other, row, col, other_row)) return false;
    return true;
  }
  bool same_rows(const Tensor& other) const {
    for (int64_t row = 0; row < rows(); ++row)
      if (!same_row(other, row, row)) return false;
    return true;
  }

  // A copy with the same strides, in memory of its own.
  Tensor copy(Random& random) const {
    Tensor result;
    result.type_ = type_;
    result.shape_ = shape_;
    result.steps_ = steps_;
    result.first_ = first_;
    result.buffer_ = Buffer(static_cast<int64_t>(buffer_.size()), size_of(type_), random);
    result.buffer_.copy_from(buffer_);
    return result;
  }

  bool gaps_are_poison() const {
    const auto* begin = static_cast<const unsigned char*>(buffer_.data());
    std::vector<unsigned char> rest(begin, begin + buffer_.size());
    // Whole rows where possible: the thread sanitizer is slow with millions of small pieces.
    const int64_t together = shape_.inner == 1 ? cols() : 1;
    for (int64_t row = 0; row < rows(); ++row)
      for (int64_t col = 0; col < cols(); col += together)
        std::memset(&rest[static_cast<size_t>(index(row, col) * size_of(type_))], kPoison,
                    static_cast<size_t>(together * size_of(type_)));
    return rest.empty() ||
           (rest[0] == kPoison && std::memcmp(&rest[0], &rest[0] + 1, rest.size() - 1) == 0);
  }

 private:
  int64_t index(int64_t row, int64_t col) const {
    return first_ + row / shape_.inner * steps_.outer + col * steps_.col + row % shape_.inner;
  }

  DataType type_ = DataType::float32;
  Shape shape_ = {0, 0, 1};
  Steps steps_ = {0, 0};
  int64_t first_ = 0;  // index of element (0, 0, 0) from the lowest address
  Buffer buffer_;
};

}  // namespace layernorm::test
