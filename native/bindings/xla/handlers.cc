#include "handlers.h"

#include <algorithm>
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

// The buffers of both calls; null where one is not part of the call.
struct CallBuffers {
  const Buffer *x, *gate, *weight, *bias, *mean, *rstd, *residual;
  const Buffer* parameter;  // any: they have one type
  const Buffer* large[2];   // the results of x's size
};

// x, addend, gate, weight, bias -> y, total, mean, rstd, residual
// x, weight, bias, or with a scale -> q, scales, or q
struct ForwardCall : CallBuffers {
  const Buffer* addend;
  bool quantizes;
  Forward job = {};

  void take(Reader& reader, bool centered) {
    const bool has_addend = reader.flag("has_addend");
    x = reader.argument();
    addend = reader.argument(has_addend);
    gate = reader.argument(reader.flag("has_gate"));
    weight = reader.argument(reader.flag("has_weight"));
    bias = reader.argument(reader.flag("has_bias"));
    large[0] = reader.result();
    large[1] = reader.result(has_addend);
    quantizes = reader.is_quantized(large[0], &job.quantized.type);
    if (quantizes && reader.has_more_results())
      job.quantized.scales = data_of(reader.result());
    else
      job.quantized.given_scale = data_of(reader.argument(quantizes));
    const bool with_statistics = !quantizes && reader.has_more_results();
    mean = reader.result(with_statistics && centered);
    rstd = reader.result(with_statistics);
    residual = reader.result(with_statistics && centered);
    parameter = weight ? weight : bias;
  }

  bool place(const Order& order, Problem& problem) {
    const Ordered in_x = ordered(x, order), in_addend = ordered(addend, order),
                  in_gate = ordered(gate, order), in_y = ordered(large[0], order),
                  in_total = ordered(large[1], order);
    const Order::Placed placed[] = {{&in_x, addend ? &job.addends[0] : &problem.x},
                                    {&in_y, quantizes ? &job.quantized.values : &job.y},
                                    {&in_gate, &job.gate.values},
                                    {&in_addend, &job.addends[1]},
                                    {&in_total, &problem.x}};
    job.bias = data_of(bias);
    return order.place(placed, addend ? 5 : 3, problem);
  }
  Status run(const Problem& problem, const Threads& threads) {
    job.problem = problem;
    return forward(job, threads);
  }
  int64_t bytes_of_one(DataType type) const { return quantizes ? 1 : size_of(type); }
};

// dy, dtotal, x, gate, mean, rstd, residual, weight, bias -> dx, dweight, dbias, dgate
struct BackwardCall : CallBuffers {
  const Buffer *dy, *dtotal, *dweight, *dbias, *dgate;
  Backward job = {};

  void take(Reader& reader, bool centered) {
    dy = reader.argument();
    dtotal = reader.argument(reader.flag("has_dtotal"));
    x = reader.argument();
    gate = reader.argument(reader.flag("has_gate"));
    mean = reader.argument(centered);
    rstd = reader.argument();
    residual = reader.argument(centered);
    weight = reader.argument(reader.flag("has_weight"));
    bias = reader.argument(reader.flag("has_bias"));
    large[0] = reader.result(reader.flag("need_dx"));
    dweight = reader.result(reader.flag("need_dweight"));
    dbias = reader.result(reader.flag("need_dbias"));
    dgate = large[1] = reader.result(reader.flag("need_dgate"));
    parameter = weight ? weight : bias ? bias : dweight ? dweight : dbias;
  }

  bool place(const Order& order, Problem& problem) {
    const Ordered in_x = ordered(x, order), in_dy = ordered(dy, order),
                  in_dtotal = ordered(dtotal, order), in_gate = ordered(gate, order),
                  in_dx = ordered(large[0], order), in_dgate = ordered(dgate, order);
    const Order::Placed placed[] = {
        {&in_x, &problem.x},
        {&in_dy, &job.dy},
        {&in_dx, &job.dx},
        gate ? Order::Placed{&in_gate, &job.gate.values} : Order::Placed{&in_dtotal, &job.dtotal},
        {&in_dgate, &job.dgate}};
    job.dweight = data_of(dweight);
    job.dbias = data_of(dbias);
    job.bias = data_of(bias);
    return order.place(placed, 5, problem);
  }
  Status run(const Problem& problem, const Threads& threads) {
    job.problem = problem;
    return backward(job, threads);
  }
  static int64_t bytes_of_one(DataType type) { return size_of(type); }
};

template <class Call>
Error* handle(Frame* frame) {
  if (answered_metadata(frame)) return nullptr;
  Reader reader(*frame);
  const bool centered = reader.flag("centered");
  Call call;
  call.take(reader, centered);
  Problem problem = {};
  problem.type = reader.data_type(call.x);
  problem.parameter_type = call.parameter ? reader.data_type(call.parameter) : problem.type;
  problem.centered = centered;
  problem.zero_centered_weight = reader.flag("zero_centered_weight");
  problem.eps = reader.number("eps");
  problem.weight = data_of(call.weight);
  problem.statistics = {data_of(call.mean), data_of(call.rstd), data_of(call.residual), {}};
  call.job.gate.activation = reader.flag("is_silu") ? Activation::silu : Activation::sigmoid;
  call.job.gate.norm_first = reader.flag("norm_first");
  reader.require(accepts_parameter(problem.type, problem.parameter_type),
                 "the type of a parameter");
  const Order order = order_of(&reader, call.x);
  if (!reader.mistake()) reader.require(call.place(order, problem), "the axes");
  if (reader.mistake()) return mistake_of(*frame, reader.mistake());
  const int64_t bytes = count_elements(order.count, order.sizes) * call.bytes_of_one(problem.type);
  for (const Buffer* each : call.large) ask_for_huge_pages(data_of(each), bytes);
  return error_of(*frame, call.run(problem, threads_of(*frame)));
}

}  // namespace

Error* forward_handler(Frame* frame) { return handle<ForwardCall>(frame); }

Error* backward_handler(Frame* frame) { return handle<BackwardCall>(frame); }

}  // namespace layernorm::xla
