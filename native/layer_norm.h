// Layer normalization and RMS normalization on the CPU: the one interface that all bindings call.
//
// The bindings of a framework (NumPy, PyTorch, XLA, TensorFlow) describe the problem in a struct,
// pass the framework's threads as a callback, and call forward() or backward(). Nothing here throws,
// keeps results between calls, or knows a framework. The contract: docs/specification.md.
#pragma once

#include <cstdint>

namespace layernorm {

enum class DataType : int32_t { float32, float64, bfloat16, float16 };
constexpr DataType kDataTypes[] = {DataType::float32, DataType::float64, DataType::bfloat16,
                                   DataType::float16};

// Statistics are float32, and float64 for float64: the type that the kernels compute in.
constexpr DataType compute_type(DataType type) {
  return type == DataType::float64 ? DataType::float64 : DataType::float32;
}

constexpr int64_t size_of(DataType type) {
  return type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2;
}

// Weight and bias have one type, x's or, for 16-bit x, float32.
constexpr bool accepts_parameter(DataType type, DataType parameter_type) {
  return parameter_type == type || (size_of(type) == 2 && parameter_type == DataType::float32);
}

// Every array is seen as (outer, cols, inner): cols is normalized, and each (outer, inner) is a
// row. inner == 1 is the usual layout, the row contiguous; inner > 1 is channels first.
struct Shape {
  int64_t outer;
  int64_t cols;
  int64_t inner;

  constexpr int64_t rows() const { return outer * inner; }
  constexpr int64_t elements() const { return rows() * cols; }
};

// Element (o, c, i) is at data + o * outer_stride + c * col_stride + i; strides count elements.
// With inner == 1, col_stride is 1.
struct Array {
  void* data;
  int64_t outer_stride;
  int64_t col_stride;
};

// One value for each row, contiguous (outer, inner), of compute_type. The mean of a row is the
// unevaluated sum mean + residual: far from zero, mean alone is not exact enough for the backward.
struct Statistics {
  void* mean;
  void* rstd;
  void* residual;
};

// What the forward and the backward have in common.
struct Problem {
  Shape shape;
  DataType type;            // of x, y, dy and dx
  DataType parameter_type;  // of weight, bias, dweight and dbias: type, or float32 for 16-bit types
  bool centered;            // false: RMS normalization, mean = 0
  bool zero_centered_weight;  // true: multiply by 1 + weight
  double eps;                 // NaN in a backward: not known
  Array x;                    // only read
  const void* weight;         // (cols,) or null
  Statistics statistics;
};

struct Forward {
  Problem problem;   // statistics: written where not null
  const void* bias;  // (cols,) or null
  Array y;           // x itself, or memory that does not overlap it
};

struct Backward {
  Problem
      problem;  // statistics: rstd and (when centered) mean are read; a null residual is recomputed
  Array dy;     // only read
  Array dx;     // data null: not wanted. May be x or dy itself
  void* dweight;  // (cols,) or null: not wanted
  void* dbias;    // (cols,) or null: not wanted
};

// A framework's threads. run() calls body(context, begin, end) on disjoint ranges that cover
// [0, tasks), on any threads, and returns after all of them. The results do not depend on the
// ranges.
struct Threads {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  int count;
  void* pool;
  void (*run)(void* pool, int64_t tasks, Body body, void* context);
  // The least that each thread must read and write for another one to pay off: waking a sleeping
  // thread takes about as long.
  int64_t bytes_per_thread = 192 * 1024;
};

enum class Status : int32_t { ok, out_of_memory };

Status forward(const Forward& job, const Threads& threads);
Status backward(const Backward& job, const Threads& threads);

// Instruction sets. At first use, the best that the processor supports is chosen; LAYERNORM_ISA
// selects a lower one.
const char* chosen_isa();
int available_isa_count();
const char* available_isa(int index);  // worst first

}  // namespace layernorm
