// What a call from XLA says: its buffers, taken one by one, its attributes, and the problem in
// them.
#pragma once

#include <cstdint>

#include "ffi.h"
#include "layer_norm.h"

namespace layernorm::xla {

// Reads a frame. What is missing or of another kind than asked for is remembered in mistake(), and
// something harmless is returned.
class Reader {
 public:
  explicit Reader(const Frame& frame) : frame_(frame) {}

  bool flag(const char* name);
  int64_t integer(const char* name);
  double number(const char* name);

  // Null where the buffer is not `given` to the call; else the next one.
  const Buffer* argument(bool given = true);
  const Buffer* result(bool given = true);
  bool has_more_results() const { return results_ < frame_.results.count; }

  DataType data_type(const Buffer* buffer);
  void require(bool condition, const char* mistake);

  // Null where all was as it must be.
  const char* mistake() const { return mistake_; }

 private:
  const void* scalar(const char* name, Type type);
  const Buffer* next(const Buffers& buffers, int64_t* at);

  const Frame& frame_;
  int64_t arguments_ = 0, results_ = 0;
  const char* mistake_ = nullptr;
};

// x as the attributes say: some leading axes are a batch of problems that have nothing to do with
// each other, the axes from `begin` to `end` are normalized.
struct Batch {
  int64_t problems;
  int64_t batch_axes, normalized_axes;
  Shape shape;  // of one problem

  int64_t elements() const { return shape.outer * shape.cols * shape.inner; }
  int64_t rows() const { return shape.outer * shape.inner; }
  int64_t bytes(DataType type) const { return problems * elements() * size_of(type); }
  Array array(const Buffer* buffer) const;
  // How many elements of a parameter, or of its gradient, lie between two problems: none if they
  // share it.
  int64_t parameter_stride(const Buffer* parameter) const;
};

Batch batch_of(Reader* reader, const Buffer* x);

// Element `index` of a buffer; null for null.
void* at(void* data, DataType type, int64_t index);

inline void* data_of(const Buffer* buffer) { return buffer ? buffer->data : nullptr; }

}  // namespace layernorm::xla
