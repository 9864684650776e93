// How a problem is cut into tasks, and the memory it needs. Decided from the shape and the types
// alone: neither the threads nor the instruction set change which sums are formed.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels/kernels.h"
#include "subnormals.h"

namespace layernorm {
namespace {

// Where the arrays together have as much, the output will not be found in the cache by whoever
// reads it next, so it is written past the cache. Measured with a reader: docs/performance.md.
constexpr int64_t kStreamBytes = 24 * 1024 * 1024;

// x of as much is fetched ahead of its use. Where all is in the cache that costs the backward a
// fourteenth; where it comes from memory it saves a sixth.
constexpr int64_t kFetchBytes = 1024 * 1024;

// x of as much is too large for a processor's own cache.
constexpr int64_t kFarBytes = 2 * 1024 * 1024;

// From this many rows on, parameters that are not aligned to cache lines are copied to where they
// are.
constexpr int64_t kRowsWorthAligning = 32;
constexpr int64_t kLine = 64;

// Blocks of the parameters' gradients. From kManyRows rows on they are long enough that their
// partial sums, 16 bytes a column for float, stay under one percent of x (two for 16-bit x of few
// rows); with fewer rows they are short enough to occupy several threads.
constexpr int64_t kManyRows = 1000;
constexpr int64_t kMostBlocks = 64;
constexpr int64_t kFewestRowsPerBlock = 16;
constexpr int64_t kGroup = 8;  // blocks hold whole groups of rows

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t rows_of(const Shape& shape) { return shape.outer * shape.inner; }

int64_t units_of(const Shape& shape) {
  return shape.inner == 1 ? shape.outer : shape.outer * divide_up(shape.inner, kTileRows);
}

int64_t whole_groups(int64_t rows) { return divide_up(rows, kGroup) * kGroup; }

int64_t rows_per_block(int64_t rows, DataType type) {
  if (rows < kManyRows) return whole_groups(std::max(kFewestRowsPerBlock, divide_up(rows, 8)));
  const int64_t long_enough = size_of(type) == 2 ? kManyRows : kManyRows / 2;
  int64_t blocks = 2;
  while (blocks < kMostBlocks && 2 * blocks * long_enough <= rows) blocks *= 2;
  return whole_groups(divide_up(rows, blocks));
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(int64_t bytes) {
  const auto size = static_cast<size_t>(divide_up(bytes, kLine) * kLine);
#if defined(_WIN32)
  return Memory(std::malloc(size));
#else
  return Memory(std::aligned_alloc(kLine, size));
#endif
}

// Working memory of one call at a time. Each thread keeps a little of it, since malloc cuts off and
// joins such pieces anew in every call.
class Scratch {
 public:
  // Null where there is no memory.
  void* take(int64_t bytes) {
    if (bytes > kKept) return (own_ = allocate(bytes)).get();
    thread_local Memory kept;
    if (!kept) kept = allocate(kKept);
    return kept.get();
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int64_t kKept = 0;  // so that it sees where each call's memory ends
#else
  static constexpr int64_t kKept = 64 * 1024;
#endif
  Memory own_;
};

// A parameter as the kernels read it: in the compute type, with the 1 of a zero-centered weight
// added, aligned, and in the order they walk a row. Copies only where that differs from what the
// host gave.
class Parameter {
 public:
  bool prepare(const Problem& problem, const void* given, bool add_one, const Kernels& kernels) {
    plain_ = ordered_ = given;
    if (!given) return true;
    const int64_t cols = problem.shape.cols;
    const int64_t bytes = cols * size_of(compute_type(problem.type));
    if (add_one || problem.parameter_type != compute_type(problem.type)) {
      widened_ = allocate(bytes);
      if (!widened_) return false;
      kernels.widen(problem.parameter_type, given, add_one, cols, widened_.get());
      plain_ = ordered_ = widened_.get();
    } else if (reinterpret_cast<uintptr_t>(given) % kLine != 0 &&
               rows_of(problem.shape) >= kRowsWorthAligning) {
      widened_ = allocate(bytes);
      if (!widened_) return false;
      std::memcpy(widened_.get(), given, static_cast<size_t>(bytes));
      plain_ = ordered_ = widened_.get();
    }
    if (problem.shape.inner == 1 && kernels.walks_in_packs(problem.type)) {
      in_packs_ = allocate(bytes);
      if (!in_packs_) return false;
      kernels.put_in_packs(problem.type, plain_, cols, in_packs_.get());
      ordered_ = in_packs_.get();
    }
    return true;
  }
  const void* plain() const { return plain_; }
  const void* ordered() const { return ordered_; }

 private:
  const void* plain_ = nullptr;
  const void* ordered_ = nullptr;
  Memory widened_, in_packs_;
};

template <class Task>
struct Call {
  const Task* task;
  void (*kernel)(const Task&, int64_t, int64_t);
};

template <class Task>
void run(const Threads& threads, bool alone, int64_t tasks, const Task& task,
         void (*kernel)(const Task&, int64_t, int64_t)) {
  if (alone || threads.count <= 1 || tasks <= 1) return kernel(task, 0, tasks);
  Call<Task> call = {&task, kernel};
  threads.run(
      threads.pool, tasks,
      [](void* context, int64_t begin, int64_t end) {
        const SubnormalsKept kept;
        const auto* to = static_cast<const Call<Task>*>(context);
        to->kernel(*to->task, begin, end);
      },
      &call);
}

int64_t bytes_of(const Problem& problem) {
  return rows_of(problem.shape) * problem.shape.cols * size_of(problem.type);
}

bool is_small(const Problem& problem, int64_t arrays, const Threads& threads) {
  return bytes_of(problem) * arrays < 2 * threads.bytes_per_thread;
}

bool is_streamed(const Problem& problem, int64_t arrays) {
  return problem.shape.inner == 1 && bytes_of(problem) * arrays >= kStreamBytes;
}

// Other rows have to be put together from pieces first, which takes the forward as long as
// streaming saves it.
bool begin_with_lines(const Array& rows, DataType type) {
  const auto begin = reinterpret_cast<uintptr_t>(rows.data);
  return (begin | static_cast<uintptr_t>(rows.outer_stride * size_of(type))) % kLine == 0;
}

}  // namespace

Status forward(const Forward& job, const Threads& threads) {
  const SubnormalsKept kept;
  const Problem& problem = job.problem;
  if (rows_of(problem.shape) == 0 || problem.shape.cols == 0) return Status::ok;
  const Kernels& kernels = chosen_kernels();
  Parameter weight, bias;
  if (!weight.prepare(problem, problem.weight, problem.zero_centered_weight, kernels) ||
      !bias.prepare(problem, job.bias, false, kernels))
    return Status::out_of_memory;
  // An output that replaces its input is in the cache anyway.
  const bool stream = is_streamed(problem, 2) && begin_with_lines(job.y, problem.type) &&
                      job.y.data != problem.x.data;
  const int64_t bytes = bytes_of(problem);
  const ForwardTask task = {&job,         weight.ordered(),     bias.ordered(),     weight.plain(),
                            bias.plain(), bytes >= kFetchBytes, bytes >= kFarBytes, stream};
  run(threads, is_small(problem, 2, threads), units_of(problem.shape), task, kernels.forward);
  return Status::ok;
}

Status backward(const Backward& job, const Threads& threads) {
  const SubnormalsKept kept;
  const Problem& problem = job.problem;
  const bool in_place =
      job.dx.data && (job.dx.data == job.dy.data || job.dx.data == problem.x.data);
  if (in_place && (job.dweight || job.dbias)) {
    // The parameters' gradients first, on their own: a sum that overflows reads x and dy again.
    Backward parameters = job, rest = job;
    parameters.dx.data = nullptr;
    rest.dweight = rest.dbias = nullptr;
    const Status status = backward(parameters, threads);
    return status == Status::ok ? backward(rest, threads) : status;
  }
  const int64_t rows = rows_of(problem.shape), cols = problem.shape.cols;
  const Kernels& kernels = chosen_kernels();
  Parameter weight;
  if (!weight.prepare(problem, problem.weight, problem.zero_centered_weight, kernels))
    return Status::out_of_memory;
  const int64_t units = units_of(problem.shape);
  const int64_t rows_per_unit =
      problem.shape.inner == 1 ? 1 : std::min(problem.shape.inner, kTileRows);
  const int64_t units_per_block = divide_up(rows_per_block(rows, problem.type), rows_per_unit);
  // Without rows there is still one block, of zeros.
  const int64_t blocks =
      std::max(int64_t{1}, divide_up(units, std::max(int64_t{1}, units_per_block)));
  const bool parameters = job.dweight || job.dbias;
  Scratch scratch;
  void* partials = nullptr;
  if (parameters) {
    partials = scratch.take(blocks * 4 * cols * size_of(compute_type(problem.type)));
    if (!partials) return Status::out_of_memory;
  }
  const bool stream =
      is_streamed(problem, 3) && job.dx.data != job.dy.data && job.dx.data != problem.x.data;
  const bool fetch = bytes_of(problem) >= kFetchBytes;
  const BackwardTask task = {&job,  weight.ordered(), weight.plain(), fetch,   stream,
                             units, units_per_block,  blocks,         partials};
  const bool small = is_small(problem, 3, threads);
  if (cols > 0) run(threads, small, blocks, task, kernels.backward);
  if (parameters) {
    if (small || threads.count <= 1 || blocks * cols < (1 << 17)) {
      kernels.reduce(task, 0, divide_up(cols, kReduceCols));
    } else {
      run(threads, false, divide_up(cols, kReduceCols), task, kernels.reduce);
    }
  }
  return Status::ok;
}

}  // namespace layernorm
