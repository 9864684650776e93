// A call from XLA: its buffers, taken one by one, its attributes, and the order of axes that they
// describe.
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
  // False for any other type.
  static bool is_quantized(const Buffer* buffer, QuantizedType* type);
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

// How the kernels read x: the attributes "axes" and "varying" are bits, one for each axis of x.
// Weight and bias have the varying axes and then the normalized ones.
Order order_of(Reader* reader, const Buffer* x);

// Where a buffer of x's shape is; with no buffer, null.
Ordered ordered(const Buffer* buffer, const Order& order);

inline void* data_of(const Buffer* buffer) { return buffer ? buffer->data : nullptr; }

}  // namespace layernorm::xla
