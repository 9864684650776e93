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
//
// Where no single stride steps through outer, it is several axes: kAround sizes, the first of which
// may be 1, around a run of neighbors.
constexpr int kAround = 3;
struct Shape {
  int64_t outer;
  int64_t cols;
  int64_t inner;
  int64_t around[kAround] = {1, 1, 1};

  constexpr int64_t rows() const { return outer * inner; }
  constexpr int64_t elements() const { return rows() * cols; }
  constexpr int64_t runs() const { return around[0] * around[1] * around[2]; }
  constexpr bool is_one_run() const { return runs() == 1; }
};

// A group of rows that has weight and bias of its own is a member; a problem has the product of
// these sizes, each member of the problem's shape. Rows of several members may alternate in memory.
constexpr int kMemberAxes = 4;
struct Members {
  int64_t sizes[kMemberAxes] = {1, 1, 1, 1};

  constexpr int64_t count() const { return sizes[0] * sizes[1] * sizes[2] * sizes[3]; }
};

// The distance, in elements, from one (outer, inner) to the next along outer, and along the axes
// around it.
struct Strides {
  int64_t outer;
  int64_t around[kAround] = {};
  int64_t members[kMemberAxes] = {};
};

// Where an outer is among the runs of `run` neighbors.
struct Place {
  int64_t in_run;
  int64_t around[kAround];
};
inline Place place_of(const Shape& shape, int64_t run, int64_t outer) {
  Place place = {outer % run, {}};
  outer /= run;
  for (int axis = kAround - 1; axis >= 0; --axis) {
    if (outer < shape.around[axis]) {  // saves a division, which takes longer than all the rest
      place.around[axis] = outer;
      break;
    }
    place.around[axis] = outer % shape.around[axis];
    outer /= shape.around[axis];
  }
  return place;
}

// Where it is in memory, in elements from the first.
inline int64_t offset_of(const Strides& strides, const Place& place) {
  int64_t offset = place.in_run * strides.outer;
  for (int axis = 0; axis < kAround; ++axis) offset += place.around[axis] * strides.around[axis];
  return offset;
}
inline int64_t offset_of(const Shape& shape, const Strides& strides, int64_t outer) {
  if (shape.is_one_run()) return outer * strides.outer;
  return offset_of(strides, place_of(shape, shape.outer / shape.runs(), outer));
}

// Element (o, c, i) is at data + offset_of(o) + c * col_stride + i. With inner == 1, col_stride is
// 1.
struct Array {
  void* data;
  Strides strides;
  int64_t col_stride;
};

// One value for each row, of compute_type: that of (o, i) is at offset_of(o) + i. The mean of a row
// is the unevaluated sum mean + residual: far from zero, mean alone is not exact enough for the
// backward.
struct Statistics {
  void* mean;
  void* rstd;
  void* residual;
  Strides strides;
};

// What the forward and the backward have in common.
struct Problem {
  Shape shape;
  DataType type;            // of x, y, dy and dx
  DataType parameter_type;  // of weight, bias, dweight and dbias: type, or float32 for 16-bit types
  bool centered;            // false: RMS normalization, mean = 0
  bool zero_centered_weight;  // true: multiply by 1 + weight
  double eps;                 // NaN in a backward: not known
  Array x;                    // only read, but for a forward's sum
  const void* weight;         // (members, cols) or null, as are the other parameters
  Statistics statistics;
  Members members;
};

// y = norm(x) * act(values), or norm(x * act(values)). Data null: there is no gate.
enum class Activation : int32_t { silu, sigmoid };  // silu(z) = z * sigmoid(z)
struct Gate {
  Array values;
  Activation activation;
  bool norm_first;
};

// q = y / scale, rounded to nearest, ties to even, and saturated, where y is rounded to x's type
// first. The scale of a row is max|y| / (the type's largest number), at least the smallest normal
// number of compute_type. Values null: y is not quantized.
enum class QuantizedType : int32_t { int8, float8_e4m3fn, float8_e5m2 };
struct Quantized {
  Array values;
  QuantizedType type;
  void* scales;             // written, as the statistics are
  const void* given_scale;  // of all rows, of compute_type; or null, and `scales` is not
};

struct Forward {
  Problem problem;   // statistics: written where not null
  const void* bias;  // or null
  Array y;           // x itself or an addend, or memory that does not overlap them
  // x is first written: their sum, rounded to the type. Either may be x itself. Data null: x is
  // given.
  Array addends[2] = {};
  Gate gate = {};            // beside it, no addends; y may be it, or does not overlap it
  Quantized quantized = {};  // instead of y, which is not written

  bool adds() const { return addends[0].data != nullptr; }
};

struct Backward {
  Problem
      problem;  // statistics: rstd and (when centered) mean are read; a null residual is recomputed
  Array dy;     // only read
  Array dx;     // data null: not wanted. May be x, dy or dtotal itself
  void* dweight;  // or null: not wanted
  void* dbias;    // or null: not wanted
  // The gradient of x by other ways than y, added to dx; data null: there is none.
  Array dtotal = {};
  // With a gate, which rules out dtotal: eps is known, and bias is as in the forward.
  Gate gate = {};
  Array dgate = {};  // data null: not wanted; else memory that overlaps nothing
  const void* bias = nullptr;
};

// A step over rows that are split: other processes have the rest of each. Between the steps they
// gather what each has summed. A row's numbers are at the offset of its statistics, the next number
// of all rows `stride` behind.
struct SplitRows {
  enum class Step : int32_t { moments, norm, sums, gradient };
  Step step;
  Problem problem;   // without eps; of the statistics, the strides alone
  const void* bias;  // of a norm, or null
  Array dy, dtotal;  // of sums and of a gradient; of a gradient, data null: there is none
  Array result;      // y of a norm, dx of a gradient
  // Of whole rows times 2^-power: rstd, mean, residual, power; but for moments.
  const double* statistics;
  // Written: moments, the deviation, mean and residual of a part, for float32 and 16 bits without
  // the residual, for RMS norm the deviation alone; sums, of g * xhat, xhat^2 and g.
  // Read: gradient, the means of g * xhat and g of whole rows.
  double* numbers;
  int64_t stride;
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
Status split_rows(const SplitRows& job, const Threads& threads);

// Instruction sets. At first use, the best that the processor supports is chosen; LAYERNORM_ISA
// selects a lower one.
const char* chosen_isa();
int available_isa_count();
const char* available_isa(int index);  // worst first

}  // namespace layernorm
