#include "handlers.h"

#include <algorithm>
#include <atomic>
#include <cstdio>

#include "frame.h"
#include "runtime/huge_pages.h"
#include "threads.h"

namespace layernorm::xla {
namespace {

// True if the frame asks for the handler's metadata, as XLA does when the handler is registered.
bool answered_metadata(Frame* frame) {
  for (Extension* each = frame->extension; each; each = each->next) {
    if (each->kind != Extension::metadata) continue;
    Metadata* metadata = reinterpret_cast<MetadataExtension*>(each)->metadata;
    metadata->version.major = kMajor;
    // Version 1 asks without its functions, and accepts handlers of its own version only.
    metadata->version.minor = frame->api ? std::min(kMinor, frame->api->version.minor) : 1;
    metadata->traits = 0;
    return true;
  }
  return false;
}

Error* error_of(const Frame& frame, ErrorCode code, const char* message) {
  MakeError arguments = {sizeof(arguments), nullptr, message, code};
  return frame.api->make_error(&arguments);
}

Error* mistake_of(const Frame& frame, const char* mistake) {
  // No std::string: nothing may be thrown through XLA.
  char message[128];
  std::snprintf(message, sizeof(message),
                "layernorm: the call from XLA does not fit the compiled module: %s", mistake);
  return error_of(frame, ErrorCode::invalid_argument, message);
}

Error* error_of(const Frame& frame, Status status) {
  if (status == Status::ok) return nullptr;
  return error_of(frame, ErrorCode::resource_exhausted,
                  "layernorm: no memory for the kernels' scratch");
}

// Runs one(index, threads) for each problem: a single one on all threads, each of several on one
// thread. The results are the same.
template <class One>
Status run_each(const Frame& frame, int64_t problems, int64_t bytes, const One& one) {
  const Threads threads = threads_of(frame);
  if (problems == 1) return one(0, threads);
  struct Call {
    const One* one;
    std::atomic<Status> status;
  } call = {&one, {Status::ok}};
  const auto body = [](void* context, int64_t begin, int64_t end) {
    auto* to = static_cast<Call*>(context);
    for (int64_t index = begin; index < end; ++index) {
      const Status status = (*to->one)(index, Threads{1, nullptr, nullptr});
      if (status != Status::ok) to->status = status;
    }
  };
  if (threads.count <= 1 || bytes < 2 * threads.bytes_per_thread) {
    body(&call, 0, problems);
  } else {
    threads.run(threads.pool, problems, body, &call);
  }
  return call.status;
}

Statistics move(const Statistics& statistics, DataType type, int64_t rows) {
  return {at(statistics.mean, type, rows), at(statistics.rstd, type, rows),
          at(statistics.residual, type, rows)};
}

Array move(const Array& array, DataType type, int64_t elements) {
  return {at(array.data, type, elements), array.outer_stride, array.col_stride};
}

// The problem at this index of the batch.
Problem move(const Problem& problem, const Batch& batch, int64_t index, int64_t weight_stride) {
  Problem moved = problem;
  moved.x = move(problem.x, problem.type, index * batch.shape.elements());
  moved.weight =
      at(const_cast<void*>(problem.weight), problem.parameter_type, index * weight_stride);
  moved.statistics =
      move(problem.statistics, compute_type(problem.type), index * batch.shape.rows());
  return moved;
}

// The buffers of both calls; null where one is not part of the call.
struct CallBuffers {
  const Buffer *x, *weight, *mean, *rstd, *residual;
  const Buffer* parameter;  // any: they have one type
  const Buffer* large;      // the result of x's size
};

// x, weight, bias -> y, mean, rstd, residual
struct ForwardCall : CallBuffers {
  static constexpr int64_t kArrays = 2;  // of x's size
  const Buffer* bias;

  void take(Reader& reader, bool centered) {
    x = reader.argument();
    weight = reader.argument(reader.flag("has_weight"));
    bias = reader.argument(reader.flag("has_bias"));
    large = reader.result();
    const bool with_statistics = reader.has_more_results();
    mean = reader.result(with_statistics && centered);
    rstd = reader.result(with_statistics);
    residual = reader.result(with_statistics && centered);
    parameter = weight ? weight : bias;
  }

  Status run(const Problem& moved, const Batch& batch, int64_t index,
             const Threads& threads) const {
    const int64_t bias_at = index * batch.parameter_stride(bias);
    const Forward job = {
        moved,
        at(data_of(bias), moved.parameter_type, bias_at),
        move(batch.array(large), moved.type, index * batch.shape.elements()),
    };
    return forward(job, threads);
  }
};

// dy, x, mean, rstd, residual, weight -> dx, dweight, dbias
struct BackwardCall : CallBuffers {
  static constexpr int64_t kArrays = 3;
  const Buffer *dy, *dweight, *dbias;

  void take(Reader& reader, bool centered) {
    dy = reader.argument();
    x = reader.argument();
    mean = reader.argument(centered);
    rstd = reader.argument();
    residual = reader.argument(centered);
    weight = reader.argument(reader.flag("has_weight"));
    large = reader.result(reader.flag("need_dx"));
    dweight = reader.result(reader.flag("need_dweight"));
    dbias = reader.result(reader.flag("need_dbias"));
    parameter = weight ? weight : dweight ? dweight : dbias;
  }

  Status run(const Problem& moved, const Batch& batch, int64_t index,
             const Threads& threads) const {
    const int64_t elements = index * batch.shape.elements(), cols = index * batch.shape.cols;
    const Backward job = {
        moved,
        move(batch.array(dy), moved.type, elements),
        move(batch.array(large), moved.type, elements),
        at(data_of(dweight), moved.parameter_type, cols),
        at(data_of(dbias), moved.parameter_type, cols),
    };
    return backward(job, threads);
  }
};

template <class Call>
Error* handle(Frame* frame) {
  if (answered_metadata(frame)) return nullptr;
  Reader reader(*frame);
  const bool centered = reader.flag("centered");
  Call call;
  call.take(reader, centered);
  const Batch batch = batch_of(&reader, call.x);
  const DataType type = reader.data_type(call.x);
  const Problem problem = {
      batch.shape,
      type,
      call.parameter ? reader.data_type(call.parameter) : type,
      centered,
      reader.flag("zero_centered_weight"),
      reader.number("eps"),
      batch.array(call.x),
      data_of(call.weight),
      {data_of(call.mean), data_of(call.rstd), data_of(call.residual)},
  };
  reader.require(accepts_parameter(type, problem.parameter_type), "the type of a parameter");
  if (reader.mistake()) return mistake_of(*frame, reader.mistake());
  ask_for_huge_pages(data_of(call.large), batch.bytes(type));
  const int64_t weight_stride = batch.parameter_stride(call.weight);
  const auto one = [&](int64_t index, const Threads& threads) {
    return call.run(move(problem, batch, index, weight_stride), batch, index, threads);
  };
  return error_of(*frame, run_each(*frame, batch.problems, Call::kArrays * batch.bytes(type), one));
}

}  // namespace

Error* forward_handler(Frame* frame) { return handle<ForwardCall>(frame); }

Error* backward_handler(Frame* frame) { return handle<BackwardCall>(frame); }

}  // namespace layernorm::xla
