#include "torch_plain.h"

#include <utility>

#include "python_gil.h"
#include "python_owned.h"
#include "torch_memory.h"
#include "torch_plain_call.h"
#include "torch_tensor.h"

namespace layernorm::torch {
namespace {

using python::Owned;
using python::WithoutGil;

// The tensor of a managed one, which it takes over, and its memory.
Owned object_of(dlpack::ManagedTensor* managed, void** data) {
  *data = static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset;
  void* object = nullptr;
  if (exchange->managed_to_object(managed, &object) != 0) return Owned();
  return Owned(static_cast<PyObject*>(object));
}

// A fresh tensor, and its memory. It costs a third of a call of torch.empty_like, and its storage
// cannot be resized.
Owned empty(dlpack::Tensor prototype, void** data) {
  dlpack::ManagedTensor* managed = nullptr;
  const auto set_error = [](void*, const char*, const char* message) {
    PyErr_SetString(PyExc_MemoryError, message);
  };
  if (exchange->allocate(&prototype, &managed, nullptr, set_error) != 0) return Owned();
  return object_of(managed, data);
}

Owned large_empty_like(const Plain& like, void** data) {
  dlpack::ManagedTensor* managed = large_managed_like(like.view, like.bytes());
  return managed ? object_of(managed, data) : Owned(PyErr_NoMemory());
}

// y, of the type, layout and sizes of x.
Owned empty_y(const PlainCall& call, void** data) {
  if (is_large(call.x.bytes())) return large_empty_like(call.x, data);
  Owned y(empty_like(call.x_object));
  if (!y) return y;
  Plain taken;
  if (!taken.take(y.get())) {
    PyErr_SetString(PyExc_RuntimeError, "layernorm: torch.empty_like gave a tensor unlike x");
    return Owned();
  }
  *data = taken.data();
  return y;
}

// A gradient with respect to this tensor.
Owned empty_gradient(const Plain& of, void** data) {
  return is_large(of.bytes()) ? large_empty_like(of, data) : empty(of.view, data);
}

// (3, rows): mean, rstd, residual; (1, rows) for RMS normalization: rstd.
Owned empty_statistics(DataType type, int64_t kinds, int64_t rows, void** data) {
  int64_t sizes[2] = {kinds, rows}, strides[2] = {rows, 1};
  const auto bits = static_cast<uint8_t>(8 * size_of(compute_type(type)));
  return empty({nullptr, {dlpack::kCpu, 0}, 2, {dlpack::kFloat, bits, 1}, sizes, strides, 0}, data);
}

Statistics statistics_in(void* data, DataType type, bool centered, int64_t rows) {
  if (!centered) return {nullptr, data, nullptr};
  const int64_t bytes = rows * size_of(compute_type(type));
  char* first = static_cast<char*>(data);
  return {first, first + bytes, first + 2 * bytes};
}

// False with Python's error set.
bool run_forward(const PlainCall& call, const Problem& problem, void* y) {
  const Forward job = {problem, call.bias ? call.bias.data() : nullptr, {y, call.cols, 1}};
  Status status;
  {
    const WithoutGil released(call.x.bytes());
    status = forward(job, parallel_for());
  }
  if (status != Status::ok) PyErr_NoMemory();
  return status == Status::ok;
}

// y, or nothing with Python's error set.
Owned run_forward(const PlainCall& call, const Problem& problem) {
  void* data = nullptr;
  Owned y = empty_y(call, &data);
  return y && run_forward(call, problem, data) ? std::move(y) : Owned();
}

bool has_count(const char* name, Py_ssize_t count, Py_ssize_t expected) {
  if (count == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, expected, count);
  return false;
}

}  // namespace

// (x, weight, bias, normalized_shape, eps, centered, zero_centered_weight) -> y; True where the
// call is plain but asks for a gradient; None where it is not plain, with nothing touched.
PyObject* plain_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("torch_forward", count, kPlainArguments)) return nullptr;
  PlainCall call;
  Problem problem = {};
  if (!exchange || !is_unwatched() || !call.take(arguments, problem)) Py_RETURN_NONE;
  if (call.wants_gradient()) Py_RETURN_TRUE;
  return run_forward(call, problem).release();
}

// The arguments of torch_forward, and out -> True, and y is in out; False where the call is not
// plain, or asks for a gradient, with nothing touched. `out` may be x itself, and else overlaps
// nothing.
PyObject* plain_forward_into(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("torch_forward_into", count, kPlainArguments + 1)) return nullptr;
  PlainCall call;
  Plain out;
  Problem problem = {};
  PyObject* out_object = arguments[kPlainArguments];
  if (!exchange || !is_unwatched() || !call.take(arguments, problem) || !out.take(out_object) ||
      out.type != call.x.type || !out.has_sizes(call.x.view.shape, call.x.view.ndim) ||
      (out.data() != call.x.data() && out.overlaps(call.x)) || out.overlaps(call.weight) ||
      out.overlaps(call.bias) || call.wants_gradient() || wants_gradient(out_object))
    Py_RETURN_FALSE;
  if (!run_forward(call, problem, out.data())) return nullptr;
  Py_RETURN_TRUE;
}

// The arguments of a call that torch_forward has answered with True -> (y, statistics).
PyObject* plain_forward_with_statistics(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("torch_forward_with_statistics", count, kPlainArguments)) return nullptr;
  PlainCall call;
  Problem problem = {};
  if (!exchange || !call.take(arguments, problem)) Py_RETURN_NONE;
  void* data = nullptr;
  const int64_t kinds = problem.centered ? 3 : 1;
  Owned statistics = empty_statistics(problem.type, kinds, call.rows(), &data);
  if (!statistics) return nullptr;
  problem.statistics = statistics_in(data, problem.type, problem.centered, call.rows());
  Owned y = run_forward(call, problem);
  if (!y) return nullptr;
  PyObject* pair = PyTuple_New(2);
  if (!pair) return nullptr;
  PyTuple_SET_ITEM(pair, 0, y.release());
  PyTuple_SET_ITEM(pair, 1, statistics.release());
  return pair;
}

// (x, weight, bias, normalized_shape, eps, centered, zero_centered_weight, dy, statistics, need_dx,
//  need_dweight, need_dbias) -> (dx, dweight, dbias), None for what is not needed; None where the
//  call is not plain.
PyObject* plain_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("torch_backward", count, kPlainArguments + 5)) return nullptr;
  PlainCall call;
  Plain dy, saved;
  Backward job = {};
  Problem& problem = job.problem;
  if (!exchange || !is_unwatched() || !call.take(arguments, problem) || !dy.take(arguments[7]) ||
      dy.type != problem.type || !dy.has_sizes(call.x.view.shape, call.x.view.ndim) ||
      !saved.take(arguments[8]) || saved.type != compute_type(problem.type) ||
      saved.elements() != (problem.centered ? 3 : 1) * call.rows() ||
      shim.aoti_torch_grad_mode_is_enabled())
    Py_RETURN_NONE;
  const bool need[3] = {arguments[9] == Py_True, arguments[10] == Py_True,
                        arguments[11] == Py_True};
  if ((need[1] && !call.weight) || (need[2] && !call.bias)) Py_RETURN_NONE;
  problem.statistics = statistics_in(saved.data(), problem.type, problem.centered, call.rows());
  job.dy = {dy.data(), call.cols, 1};
  job.dx = {nullptr, call.cols, 1};
  Owned dx, dweight, dbias;
  if (need[0] && !(dx = empty_gradient(call.x, &job.dx.data))) return nullptr;
  if (need[1] && !(dweight = empty_gradient(call.weight, &job.dweight))) return nullptr;
  if (need[2] && !(dbias = empty_gradient(call.bias, &job.dbias))) return nullptr;
  Status status;
  {
    const WithoutGil released(call.x.bytes());
    status = backward(job, parallel_for());
  }
  if (status != Status::ok) return PyErr_NoMemory();
  PyObject* gradients = PyTuple_New(3);
  if (!gradients) return nullptr;
  PyTuple_SET_ITEM(gradients, 0, dx.release_or_none());
  PyTuple_SET_ITEM(gradients, 1, dweight.release_or_none());
  PyTuple_SET_ITEM(gradients, 2, dbias.release_or_none());
  return gradients;
}

}  // namespace layernorm::torch
