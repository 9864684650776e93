// Layer normalization and RMS normalization on the CPU: the one interface every host calls.
//
// A host (NumPy, PyTorch, XLA, TensorFlow) describes the problem in a plain struct, lends its
// threads through a callback, and calls forward() or backward(). Nothing here throws, keeps state
// between calls, or knows a framework. What is computed, and how exactly: docs/specification.md.
#pragma once

#include <cstdint>

namespace layernorm {

enum class DataType : int32_t { float32, float64, bfloat16, float16 };

// Statistics are float32, and float64 for float64: the type the kernels compute in.
constexpr DataType compute_type(DataType type) {
  return type == DataType::float64 ? DataType::float64 : DataType::float32;
}

constexpr int64_t size_of(DataType type) {
  return type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2;
}

// Every array is seen as (outer, cols, inner): cols is normalized, and each (outer, inner) is a
// row. inner == 1 is the usual layout, the row contiguous; inner > 1 is channels first.
struct Shape {
  int64_t outer;
  int64_t cols;
  int64_t inner;
};

// Element (o, c, i) is at data + o * outer_stride + c * col_stride + i; strides count elements.
// With inner == 1, col_stride is 1.
struct Array {
  void* data;
  int64_t outer_stride;
  int64_t col_stride;
};

// One value a row, contiguous (outer, inner), of compute_type. The mean of a row is
// mean + residual, unevaluated: for a row far from zero, mean alone is not enough for the backward.
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
  bool zero_centered_weight;  // true: the weight stands for 1 + weight
  double eps;
  Array x;             // only read
  const void* weight;  // (cols,) or null
  Statistics statistics;
};

struct Forward {
  Problem problem;   // statistics: written where not null
  const void* bias;  // (cols,) or null
  Array y;           // may be x itself; must not overlap it otherwise
};

struct Backward {
  Problem
      problem;  // statistics: rstd and (when centered) mean are read; a null residual is recomputed
  Array dy;     // only read
  Array dx;     // data null: not wanted; may be x or dy itself
  void* dweight;  // (cols,) or null: not wanted
  void* dbias;    // (cols,) or null: not wanted
};

// The host's threads. run() calls body(context, begin, end) on disjoint ranges that cover
// [0, tasks), on any threads, and returns when all have returned. The results do not depend on how
// it splits them.
struct Threads {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  int count;
  void* pool;
  void (*run)(void* pool, int64_t tasks, Body body, void* context);
  // Below this many bytes read and written, a second thread costs more than it brings: as long as
  // it takes to wake one that has gone to sleep.
  int64_t bytes_per_thread = 192 * 1024;
};

enum class Status : int32_t { ok, out_of_memory };

Status forward(const Forward& job, const Threads& threads);
Status backward(const Backward& job, const Threads& threads);

// Instruction sets. The best one that the processor runs is chosen at first use; LAYERNORM_ISA
// names a lower one.
const char* chosen_isa();
int available_isa_count();
const char* available_isa(int index);  // worst first

}  // namespace layernorm
