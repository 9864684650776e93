#include "fast_path.h"

#include <utility>

#include "bindings/arguments.h"
#include "bindings/gil.h"
#include "bindings/owned.h"
#include "fast_path_call.h"
#include "memory.h"
#include "tensor.h"

namespace layernorm::torch {
namespace {

using python::has_count;
using python::Owned;
using python::run;
using python::tuple_of;
using python::tuple_of_ints;

// A new contiguous tensor of the same sizes and type, and its memory.
Owned empty_like(const View& like, void** data) {
  dlpack::ManagedTensor* managed = managed_like(like);
  if (!managed) return Owned(PyErr_NoMemory());
  *data = managed->tensor.data;
  void* object = nullptr;
  if (exchange->managed_to_object(managed, &object) != 0) return Owned();
  return Owned(static_cast<PyObject*>(object));
}

Py_ssize_t statistics_bytes(const Problem& problem, int64_t rows) {
  return statistics_count(problem.centered) * rows * size_of(compute_type(problem.type));
}

// The statistics in these bytes, which the problem's strides fit.
void use_statistics(PyObject* bytes, int64_t rows, Problem& problem) {
  const Strides strides = problem.statistics.strides;
  problem.statistics =
      statistics_in(PyBytes_AsString(bytes), rows, compute_type(problem.type), problem.centered);
  problem.statistics.strides = strides;
}

// Fills in all but the memory of the results. False where the fast path cannot serve the call.
bool place(const FastCall& call, Forward& job) {
  job.bias = call.bias.data;
  const bool adds = call.residual.data, is_gated = call.gate.data;
  return call.place({{&call.x, adds ? &job.addends[0] : &job.problem.x},
                     {&call.residual, adds ? &job.addends[1] : nullptr},
                     {nullptr, adds ? &job.problem.x : nullptr},
                     {&call.gate, is_gated ? &job.gate.values : nullptr},
                     {nullptr, &job.y}},
                    job.problem);
}

// y, and with a residual total; null, with Python's error set, if memory runs out.
Owned run_forward(const FastCall& call, Forward& job, Owned* total) {
  Owned y = empty_like(call.x, &job.y.data);
  if (!y) return y;
  if (job.adds() && !(*total = empty_like(call.x, &job.problem.x.data))) return Owned();
  return run(forward, job, parallel_for()) ? std::move(y) : Owned();
}

// What torch_try_backward needs besides x and weight: the arguments after them, and the statistics.
constexpr Py_ssize_t kRestFrom = 2;
constexpr Py_ssize_t kRest = kFastPathArguments - kRestFrom + 1;

// A tuple of the sizes that are normalized.
PyObject* normalized_shape(const FastCall& call) {
  return tuple_of_ints(call.axes, [&](Py_ssize_t at) { return call.normalized_shape()[at]; });
}

PyObject* try_forward(const char* name, PyObject* const* arguments, Py_ssize_t count, Over over) {
  PyObject* const* beside = arguments + kFastPathArguments;
  const bool is_gated = count == kFastPathArguments + 1 + kGateArguments;
  if (!is_gated && !has_count(name, count, kFastPathArguments, 1)) return nullptr;
  const bool adds = count > kFastPathArguments && !is_gated;
  FastCall call;
  Forward job = {};
  Problem& problem = job.problem;
  if (!exchange || !is_unwatched() || !call.take(arguments, over, problem) ||
      (adds && !call.take_residual(*beside)) ||
      (is_gated && !call.take_gate(beside + 1, job.gate)) || call.has_negated() ||
      !place(call, job))
    Py_RETURN_NONE;
  Owned total;
  if (!call.wants_gradient()) {
    Owned y = run_forward(call, job, &total);
    if (!y || !adds) return y.release();
    return tuple_of({y.release(), total.release(), Py_NewRef(Py_None)});
  }
  Owned statistics(PyBytes_FromStringAndSize(nullptr, statistics_bytes(problem, call.rows())));
  // Before run_forward(): while it has released the GIL, another thread may resize x.
  Owned sizes(normalized_shape(call));
  if (!statistics || !sizes) return nullptr;
  use_statistics(statistics.get(), call.rows(), problem);
  Owned y = run_forward(call, job, &total);
  if (!y) return nullptr;
  PyObject* const rest =
      tuple_of({Py_NewRef(call.bias_object), sizes.release(), PyFloat_FromDouble(problem.eps),
                Py_NewRef(arguments[5]), Py_NewRef(arguments[6]), statistics.release()});
  return adds ? tuple_of({y.release(), total.release(), rest}) : tuple_of({y.release(), rest});
}

}  // namespace

// (x, weight, bias, normalized_shape, eps, centered, zero_centered_weight) -> y; (y, rest) where
// the call asks for a gradient; None where the fast path cannot serve it, with nothing touched.
// `rest` is for torch_try_backward. With (residual) after them -> (y, total, rest), rest None where
// no gradient is asked for. With (None, gate, is_silu, norm_before_gate) the gated y, as without.
PyObject* try_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return try_forward("torch_try_forward", arguments, count, Over::normalized_shape);
}

// The same with `axis`, an int or ints, instead of normalized_shape.
PyObject* try_forward_over_axes(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return try_forward("torch_try_forward_over_axes", arguments, count, Over::axes);
}

// The arguments of torch_try_forward_over_axes, and out -> True, with y in out; False where the fast
// path cannot serve the call, or it asks for a gradient, with nothing touched. `out` may be x
// itself; otherwise it must overlap no input.
PyObject* try_forward_into(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("torch_try_forward_into", count, kFastPathArguments + 1)) return nullptr;
  FastCall call;
  View out;
  Forward job = {};
  PyObject* out_object = arguments[kFastPathArguments];
  if (!exchange || !is_unwatched() || !call.take(arguments, Over::axes, job.problem) ||
      !call.take_like_x(out_object, &out) || !call.x.is_contiguous() || !out.is_contiguous() ||
      (out.data != call.x.data && out.overlaps(call.x)) || out.overlaps(call.weight) ||
      out.overlaps(call.bias) || call.has_negated() || is_negated(out_object) ||
      call.wants_gradient() || wants_gradient(out_object) || !place(call, job))
    Py_RETURN_FALSE;
  job.y.data = out.data;
  if (!run(forward, job, parallel_for())) return nullptr;
  Py_RETURN_TRUE;
}

PyObject* is_unwatched(PyObject*, PyObject*) { return PyBool_FromLong(is_unwatched()); }

// (x, weight, rest, dy, need), or these and dtotal -> (dx, dweight, dbias, None), the gradients of x,
// weight and bias that `need` asks for; None alone where the fast path cannot serve the call. The
// forward has checked that x, weight and bias are not negated. With (None, gate, is_silu,
// norm_before_gate) after them, dgate is last, if the fifth of `need` asks for it.
PyObject* try_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  const bool is_gated = count == 5 + 1 + kGateArguments;
  if (!is_gated && !has_count("torch_try_backward", count, 5, 1)) return nullptr;
  PyObject *rest = arguments[2], *need = arguments[4];
  if (!PyTuple_Check(rest) || PyTuple_Size(rest) != kRest || !PyTuple_Check(need) ||
      PyTuple_Size(need) < (is_gated ? 5 : 3))
    return PyErr_Format(PyExc_TypeError,
                        "torch_try_backward takes what torch_try_forward returned");
  PyObject* given[kFastPathArguments] = {arguments[0], arguments[1]};
  for (Py_ssize_t at = 0; at < kRest - 1; ++at) given[kRestFrom + at] = PyTuple_GetItem(rest, at);
  PyObject* statistics = PyTuple_GetItem(rest, kRest - 1);
  PyObject* dtotal_object = count > 5 ? arguments[5] : Py_None;
  FastCall call;
  View dy, dtotal;
  Backward job = {};
  Problem& problem = job.problem;
  if (!exchange || !is_unwatched() || !call.take(given, Over::normalized_shape, problem) ||
      !call.take_like_x(arguments[3], &dy) || is_negated(arguments[3]) ||
      (dtotal_object != Py_None &&
       (!call.take_like_x(dtotal_object, &dtotal) || is_negated(dtotal_object))) ||
      (is_gated && !call.take_gate(arguments + 6, job.gate)) || !PyBytes_Check(statistics) ||
      PyBytes_Size(statistics) != statistics_bytes(problem, call.rows()) ||
      c_api.aoti_torch_grad_mode_is_enabled() ||
      !call.place({{&call.x, &problem.x},
                   {&dy, &job.dy},
                   {nullptr, &job.dx},
                   {&dtotal, dtotal.data ? &job.dtotal : nullptr},
                   {&call.gate, is_gated ? &job.gate.values : nullptr},
                   {nullptr, is_gated ? &job.dgate : nullptr}},
                  problem))
    Py_RETURN_NONE;
  use_statistics(statistics, call.rows(), problem);
  job.bias = call.bias.data;
  // Of x, weight, bias, the forward's result, which has none, and the gate.
  const Py_ssize_t wanted = is_gated ? 5 : 4;
  Owned gradients(PyTuple_New(wanted));
  if (!gradients) return nullptr;
  const View none, *of[5] = {&call.x, &call.weight, &call.bias, &none, &call.gate};
  void** data[5] = {&job.dx.data, &job.dweight, &job.dbias, nullptr, &job.dgate.data};
  for (Py_ssize_t at = 0; at < wanted; ++at) {
    Owned gradient(Py_NewRef(Py_None));
    if (of[at]->data && PyTuple_GetItem(need, at) == Py_True)
      gradient = empty_like(*of[at], data[at]);
    if (!gradient) return nullptr;
    PyTuple_SetItem(gradients.get(), at, gradient.release());
  }
  return run(backward, job, parallel_for()) ? gradients.release() : nullptr;
}

}  // namespace layernorm::torch
