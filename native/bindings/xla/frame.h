// A call from XLA: its buffers, taken one by one, its attributes, and the problem they describe.
#pragma once

#include <cstdint>

#include "ffi.h"
#include "layer_norm.h"
#include "layout.h"

namespace layernorm::xla {

// Reads a frame. The first value that is missing or of another kind is recorded in mistake(), and a
// harmless one returned.
class Reader {
 public:
  explicit Reader(const Frame& frame) : frame_(frame) {}

  bool flag(const char* name);
  int64_t integer(const char* name);
  double number(const char* name);

  // The next buffer; null if it is not `given` to the call.
  const Buffer* argument(bool given = true);
  const Buffer* result(bool given = true);
  bool has_more_results() const { return results_ < frame_.results.count; }

  DataType data_type(const Buffer* buffer);
  void require(bool condition, const char* mistake);

  // Null if there was none.
  const char* mistake() const { return mistake_; }

 private:
  const void* scalar(const char* name, Type type);
  const Buffer* next(const Buffers& buffers, int64_t* at);

  const Frame& frame_;
  int64_t arguments_ = 0, results_ = 0;
  const char* mistake_ = nullptr;
};

// x as the attributes describe it: some leading axes are a batch of independent problems, the axes
// from `begin` to `end` are normalized.
struct Batch {
  int64_t problems;
  int64_t batch_axes, normalized_axes;
  Shape shape;  // of one problem

  int64_t bytes(DataType type) const { return problems * shape.elements() * size_of(type); }
  Array array(const Buffer* buffer) const;
  // The elements of a parameter, or of its gradient, from one problem to the next: 0 if they share
  // it.
  int64_t parameter_stride(const Buffer* parameter) const;
};

Batch batch_of(Reader* reader, const Buffer* x);

// Element `index` of a buffer; null for null.
void* at(void* data, DataType type, int64_t index);

inline void* data_of(const Buffer* buffer) { return buffer ? buffer->data : nullptr; }

}  // namespace layernorm::xla
