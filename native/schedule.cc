// Cuts a problem into tasks and allocates its working memory. The cut depends on the shape and the
// types alone, so neither the threads nor the instruction set change which sums are formed.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"
#include "subnormals.h"
#include "workspace.h"

namespace layernorm {
namespace {

// From this size of all arrays on, the output is written past the cache, where its next reader
// would not find it anyway. Measured with a reader: docs/performance.md.
constexpr int64_t kStreamBytes = 24 * 1024 * 1024;

// From this size on, prefetch x: 7% slower backward in cache, 17% faster from memory.
constexpr int64_t kPrefetchBytes = 1024 * 1024;

// An x of these sizes no longer fits a core's second-level cache, or its share of the third-level.
constexpr int64_t kL2Bytes = 2 * 1024 * 1024;
constexpr int64_t kL3Bytes = 6 * 1024 * 1024;

// From this many rows on, a copy of the parameters aligned to cache lines pays off.
constexpr int64_t kRowsWorthAligning = 32;

// Each block of rows has partial sums of the parameters' gradients, 16 bytes a column for float.
// From kManyRows rows on, blocks are long enough that these sums stay under 1% of x (2% for 16-bit
// x of few rows); with fewer rows they are short enough to occupy several threads.
constexpr int64_t kManyRows = 1000;
constexpr int64_t kMostBlocks = 64;
constexpr int64_t kFewestRowsPerBlock = 16;
constexpr int64_t kGroup = 8;  // blocks hold whole groups of rows

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// A parameter as the kernels read it: in the compute type, with the 1 of a zero-centered weight
// added, aligned, and in pack order. Copied only where that differs from what the caller passed.
class Parameter {
 public:
  Parameter(const Problem& problem, const void* given, bool add_one)
      : kernels_(chosen_kernels()), problem_(problem), add_one_(add_one), given_(given) {
    if (!given) return;
    widened_ = add_one || problem.parameter_type != compute_type(problem.type);
    reordered_ = problem.shape.inner == 1 && kernels_.has_pack_order(problem.type);
    copied_ = widened_ || reordered_ ||
              (reinterpret_cast<uintptr_t>(given) % kLine != 0 &&
               problem.shape.rows() >= kRowsWorthAligning);
  }
  bool is_copied() const { return copied_; }
  int64_t extra_bytes() const { return copied_ ? Workspace::needed_for(bytes()) : 0; }
  void take_memory(Workspace& workspace) {
    if (copied_) copy_ = static_cast<char*>(workspace.take(bytes()));
  }
  // Writes columns [begin, end) of the copy; a pack starts at begin.
  void copy(int64_t begin, int64_t end) const {
    if (!copied_) return;
    for (int64_t at = begin; at < end; at += kBlockCols) {
      const int64_t count = std::min(kBlockCols, end - at);
      const void* from = static_cast<const char*>(given_) + at * size_of(problem_.parameter_type);
      void* to = copy_ + at * size_of(type());
      if (widened_) {
        kernels_.widen(problem_.parameter_type, from, add_one_, count, to);
        from = to;
      }
      if (reordered_)
        kernels_.to_pack_order(problem_.type, from, count, to);
      else if (!widened_)
        std::memcpy(to, from, static_cast<size_t>(count * size_of(type())));
    }
  }
  const void* values() const { return copied_ ? copy_ : given_; }

 private:
  DataType type() const { return compute_type(problem_.type); }
  int64_t bytes() const { return problem_.shape.cols * size_of(type()); }

  const Kernels& kernels_;
  const Problem& problem_;
  const bool add_one_;
  const void* const given_;
  bool widened_ = false, reordered_ = false, copied_ = false;
  char* copy_ = nullptr;
};

// The problem of the norm alone: with a gate, it is computed in the compute type.
Problem norm_of(const Problem& problem, const Gate& gate) {
  Problem norm = problem;
  if (gate.values.data) norm.type = compute_type(problem.type);
  return norm;
}

// A framework's threads, which may flush subnormal numbers to zero, but not in these calls.
struct ThreadsWithSubnormals {
  const Threads& given;
  Threads threads = {given.count, this, run, given.bytes_per_thread};

  struct Call {
    Threads::Body body;
    void* context;
  };
  static void run(void* self, int64_t tasks, Threads::Body body, void* context) {
    const Threads& given = static_cast<const ThreadsWithSubnormals*>(self)->given;
    Call call = {body, context};
    given.run(
        given.pool, tasks,
        [](void* of_call, int64_t begin, int64_t end) {
          const NoFlushToZero mode;
          const auto* to = static_cast<const Call*>(of_call);
          to->body(to->context, begin, end);
        },
        &call);
  }
};

template <class Task>
struct Call {
  const Task* task;
  void (*kernel)(const Task&, int64_t, int64_t);
};

// Runs the tasks on the threads; without threads, or with few tasks, on this one.
template <class Task>
void run(const Threads* threads, int64_t tasks, const Task& task,
         void (*kernel)(const Task&, int64_t, int64_t)) {
  if (!threads || tasks <= 1) return kernel(task, 0, tasks);
  Call<Task> call = {&task, kernel};
  threads->run(
      threads->pool, tasks,
      [](void* context, int64_t begin, int64_t end) {
        const auto* to = static_cast<const Call<Task>*>(context);
        to->kernel(*to->task, begin, end);
      },
      &call);
}

// Calls f(begin, end) for columns [begin, end), of wide rows on the threads.
template <class F>
void over_columns(const Threads* threads, int64_t cols, const F& f) {
  if (!threads || cols <= kPartCols) return f(0, cols);
  struct Context {
    const F& f;
    int64_t cols, size;
  } all = {f, cols, part_cols(cols)};
  threads->run(
      threads->pool, divide_up(cols, all.size),
      [](void* context, int64_t begin, int64_t end) {
        const auto& [function, last, size] = *static_cast<const Context*>(context);
        function(begin * size, std::min(last, end * size));
      },
      &all);
}

// Whether threads that share the parts of each row are done sooner, by a fifth at least, than those
// that take whole tasks.
bool share_rows(const Shape& shape, int64_t tasks, const Threads& threads) {
  if (shape.inner > 1 || shape.cols <= kPartCols) return false;
  const int64_t parts = divide_up(shape.cols, part_cols(shape.cols)), count = threads.count;
  const int64_t sharing = tasks * divide_up(parts, count), apart = divide_up(tasks, count) * parts;
  return 5 * sharing <= 4 * apart;
}

// Of x, all members together.
int64_t bytes_of(const Problem& problem, int64_t members) {
  return members * problem.shape.elements() * size_of(problem.type);
}

Cache cache_for(int64_t bytes) {
  if (bytes < kL2Bytes) return Cache::second_level;
  return bytes < kL3Bytes ? Cache::third_level : Cache::none;
}

// Null where one thread alone is as fast for this many bytes.
const Threads* worthwhile(const Threads& threads, int64_t bytes) {
  return bytes < 2 * threads.bytes_per_thread || threads.count <= 1 ? nullptr : &threads;
}

// Whether rows begin with cache lines; of strided rows, whether each column of them does. The
// forward streams no others, as gathering them into whole lines takes as long as streaming saves.
bool begin_with_lines(const Array& rows, const Problem& problem) {
  int64_t strides = rows.strides.outer | (problem.shape.inner > 1 ? rows.col_stride : 0);
  for (const int64_t stride : rows.strides.around) strides |= stride;
  const auto begin = reinterpret_cast<uintptr_t>(rows.data);
  return (begin | static_cast<uintptr_t>(strides * size_of(problem.type))) % kLine == 0;
}

// ---- members

void* moved(const void* data, int64_t elements, DataType type) {
  return data ? static_cast<char*>(const_cast<void*>(data)) + elements * size_of(type) : nullptr;
}

// One member of a problem: where its arrays and its parameters are.
class Member {
 public:
  Member(const Problem& problem, int64_t index) : problem_(problem), index_(index) {
    for (int axis = kMemberAxes - 1; axis >= 0; --axis) {
      place_[axis] = index % problem.members.sizes[axis];
      index /= problem.members.sizes[axis];
    }
  }
  Array array(const Array& all) const {
    return {moved(all.data, offset(all.strides), problem_.type), all.strides, all.col_stride};
  }
  void* parameter(const void* all) const {
    return moved(all, index_ * problem_.shape.cols, problem_.parameter_type);
  }
  Problem problem() const {
    const Statistics& all = problem_.statistics;
    const DataType compute = compute_type(problem_.type);
    const int64_t at = offset(all.strides);
    Problem one = problem_;
    one.x = array(problem_.x);
    one.weight = parameter(problem_.weight);
    one.statistics = {moved(all.mean, at, compute), moved(all.rstd, at, compute),
                      moved(all.residual, at, compute), all.strides};
    one.members = {};
    return one;
  }
  Gate gate(const Gate& all) const { return {array(all.values), all.activation, all.norm_first}; }
  Quantized quantized(const Quantized& all) const {
    auto* const values = static_cast<char*>(all.values.data);
    const Strides& strides = all.values.strides;
    return {{values ? values + offset(strides) : nullptr, strides, all.values.col_stride},
            all.type,
            moved(all.scales, offset(problem_.statistics.strides), compute_type(problem_.type)),
            all.given_scale};
  }

  int64_t offset(const Strides& strides) const {
    int64_t sum = 0;
    for (int axis = 0; axis < kMemberAxes; ++axis) sum += place_[axis] * strides.members[axis];
    return sum;
  }

 private:
  const Problem& problem_;
  const int64_t index_;
  int64_t place_[kMemberAxes];
};

Forward of_member(const Forward& job, int64_t index) {
  const Member member(job.problem, index);
  return {member.problem(),      member.parameter(job.bias),
          member.array(job.y),   {member.array(job.addends[0]), member.array(job.addends[1])},
          member.gate(job.gate), member.quantized(job.quantized)};
}

Backward of_member(const Backward& job, int64_t index) {
  const Member member(job.problem, index);
  return {member.problem(),
          member.array(job.dy),
          member.array(job.dx),
          member.parameter(job.dweight),
          member.parameter(job.dbias),
          member.array(job.dtotal),
          member.gate(job.gate),
          member.array(job.dgate),
          member.parameter(job.bias)};
}

SplitRows of_member(const SplitRows& job, int64_t index) {
  const Member member(job.problem, index);
  SplitRows one = job;
  one.problem = member.problem();
  one.bias = member.parameter(job.bias);
  for (Array SplitRows::* each : {&SplitRows::dy, &SplitRows::dtotal, &SplitRows::result})
    one.*each = member.array(job.*each);
  const int64_t place = member.offset(job.problem.statistics.strides);
  if (job.statistics) one.statistics += place;
  if (job.numbers) one.numbers += place;
  return one;
}

// Calls one() for each member: with the threads where members are few, else each on one of them.
template <class Job>
Status over_members(const Job& job, const Threads& threads, int64_t arrays,
                    Status (*one)(const Job&, const Threads&, int64_t members)) {
  const int64_t members = job.problem.members.count();
  if (members == 1) return one(job, threads, 1);
  struct Call {
    const Job& job;
    decltype(one) of_one;
    int64_t members;
    std::atomic<Status> status{Status::ok};

    void run(int64_t index, const Threads& on) {
      const Status result = of_one(of_member(job, index), on, members);
      if (result != Status::ok) status = result;
    }
  } call = {job, one, members};
  const Threads alone = {1, nullptr, nullptr};
  const Threads* const use = worthwhile(threads, arrays * bytes_of(job.problem, members));
  if (!use || members < 2 * threads.count) {
    for (int64_t index = 0; index < members; ++index) call.run(index, use ? threads : alone);
    return call.status;
  }
  threads.run(
      threads.pool, members,
      [](void* context, int64_t begin, int64_t end) {
        for (; begin < end; ++begin)
          static_cast<Call*>(context)->run(begin, Threads{1, nullptr, nullptr});
      },
      &call);
  return call.status;
}

// ---- a forward and a backward of one member, one of `members` like it

Status forward_of_one(const Forward& job, const Threads& threads, int64_t members) {
  const NoFlushToZero mode;
  const Problem& problem = job.problem;
  if (problem.shape.rows() == 0 || problem.shape.cols == 0) return Status::ok;
  const Kernels& kernels = chosen_kernels();
  const Problem norm = norm_of(problem, job.gate);
  Parameter weight(norm, problem.weight, problem.zero_centered_weight);
  Parameter bias(norm, job.bias, false);
  Workspace workspace(weight.extra_bytes() + bias.extra_bytes());
  if (!workspace) return Status::out_of_memory;
  weight.take_memory(workspace);
  bias.take_memory(workspace);
  // An output that overwrites its input is in the cache already.
  const int64_t bytes = bytes_of(problem, members), units = units_of(problem.shape);
  const auto overwritten = [&](const Array& input) { return job.y.data == input.data; };
  const int64_t arrays = job.adds() ? 4 : job.gate.values.data ? 3 : 2;
  const bool stream = arrays * bytes >= kStreamBytes && !job.quantized.values.data &&
                      begin_with_lines(job.y, problem) && !overwritten(problem.x) &&
                      !overwritten(job.addends[0]) && !overwritten(job.addends[1]) &&
                      !overwritten(job.gate.values);
  const ThreadsWithSubnormals with_subnormals = {threads};
  const Threads* const use = worthwhile(with_subnormals.threads, 2 * bytes_of(problem, 1));
  const bool shared = use && share_rows(problem.shape, units, threads);
  if (weight.is_copied() || bias.is_copied())
    over_columns(use, problem.shape.cols, [&](int64_t begin, int64_t end) {
      weight.copy(begin, end);
      bias.copy(begin, end);
    });
  std::atomic<Status> status{Status::ok};
  const ForwardTask task = {
      &job,   weight.values(),        bias.values(), cache_for(bytes), bytes >= kPrefetchBytes,
      stream, shared ? use : nullptr, &status,
  };
  run(shared ? nullptr : use, units, task, kernels.forward);
  return status;
}

Status backward_of_one(const Backward& job, const Threads& threads, int64_t members) {
  const NoFlushToZero mode;
  const Problem& problem = job.problem;
  const bool in_place =
      job.dx.data && (job.dx.data == job.dy.data || job.dx.data == problem.x.data);
  if (in_place && (job.dweight || job.dbias)) {
    // The parameters' gradients first: a sum that overflows reads x and dy again, before dx
    // overwrites one of them.
    Backward parameters = job, rest = job;
    parameters.dx.data = parameters.dgate.data = nullptr;
    rest.dweight = rest.dbias = nullptr;
    const Status status = backward_of_one(parameters, threads, members);
    return status == Status::ok ? backward_of_one(rest, threads, members) : status;
  }
  const int64_t rows = problem.shape.rows(), cols = problem.shape.cols;
  const Kernels& kernels = chosen_kernels();
  const int64_t units = units_of(problem.shape);
  const int64_t rows_per_unit =
      problem.shape.inner == 1 ? 1 : std::min(problem.shape.inner, kTileRows);
  const Problem norm = norm_of(problem, job.gate);
  const int64_t units_per_block = divide_up(rows_per_block(rows, norm.type), rows_per_unit);
  // With no rows there is still one block, of zeros.
  const int64_t blocks =
      std::max(int64_t{1}, divide_up(units, std::max(int64_t{1}, units_per_block)));
  const bool parameters = job.dweight || job.dbias;
  const int64_t partials_bytes = parameters
                                     ? blocks * (has_low(problem.shape, units_per_block) ? 4 : 2) *
                                           cols * size_of(compute_type(problem.type))
                                     : 0;
  Parameter weight(norm, problem.weight, problem.zero_centered_weight);
  Parameter bias(norm, job.bias, false);
  Workspace workspace(weight.extra_bytes() + bias.extra_bytes() +
                      Workspace::needed_for(partials_bytes));
  if (!workspace) return Status::out_of_memory;
  void* const partials = parameters ? workspace.take(partials_bytes) : nullptr;
  weight.take_memory(workspace);
  bias.take_memory(workspace);
  const int64_t bytes = bytes_of(problem, members);
  const int64_t arrays = job.gate.values.data ? 5 : job.dtotal.data ? 4 : 3;
  const bool stream = arrays * bytes >= kStreamBytes && job.dx.data != job.dy.data &&
                      job.dx.data != problem.x.data && job.dx.data != job.dtotal.data &&
                      (problem.shape.inner == 1 || begin_with_lines(job.dx, problem));
  const bool prefetch = bytes >= kPrefetchBytes;
  const ThreadsWithSubnormals with_subnormals = {threads};
  const Threads* const use = worthwhile(with_subnormals.threads, 3 * bytes_of(problem, 1));
  const bool shared = use && share_rows(problem.shape, blocks, threads);
  if (weight.is_copied() || bias.is_copied())
    over_columns(use, cols, [&](int64_t begin, int64_t end) {
      weight.copy(begin, end);
      bias.copy(begin, end);
    });
  std::atomic<Status> status{Status::ok};
  const BackwardTask task = {
      &job,    weight.values(), prefetch, stream,   shared ? use : nullptr,
      units,   units_per_block, blocks,   partials, bias.values(),
      &status,
  };
  if (cols > 0) run(shared ? nullptr : use, blocks, task, kernels.backward);
  if (parameters) {
    const bool few = blocks * cols < (1 << 17);
    run(few ? nullptr : use, divide_up(cols, kReduceCols), task, kernels.reduce);
  }
  return status;
}

Status split_rows_of_one(const SplitRows& job, const Threads& threads, int64_t) {
  const NoFlushToZero mode;
  const Problem& problem = job.problem;
  if (problem.shape.rows() == 0 || problem.shape.cols == 0) return Status::ok;
  Parameter weight(problem, problem.weight, problem.zero_centered_weight);
  Parameter bias(problem, job.bias, false);
  Workspace workspace(weight.extra_bytes() + bias.extra_bytes());
  if (!workspace) return Status::out_of_memory;
  for (Parameter* each : {&weight, &bias}) {
    each->take_memory(workspace);
    each->copy(0, problem.shape.cols);
  }
  const ThreadsWithSubnormals with_subnormals = {threads};
  const Threads* const use = worthwhile(with_subnormals.threads, 2 * bytes_of(problem, 1));
  const SplitRowsTask task = {&job, weight.values(), bias.values()};
  run(use, units_of(problem.shape), task, chosen_kernels().split_rows);
  return Status::ok;
}

}  // namespace

Status forward(const Forward& job, const Threads& threads) {
  return over_members(job, threads, 2, forward_of_one);
}

Status backward(const Backward& job, const Threads& threads) {
  return over_members(job, threads, 3, backward_of_one);
}

Status split_rows(const SplitRows& job, const Threads& threads) {
  return over_members(job, threads, 2, split_rows_of_one);
}

}  // namespace layernorm
