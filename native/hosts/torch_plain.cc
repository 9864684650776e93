#include "torch_plain.h"

#include <cmath>
#include <initializer_list>
#include <limits>

#include "dlpack.h"
#include "huge_pages.h"
#include "python_gil.h"
#include "python_owned.h"
#include "torch_tensor.h"

namespace layernorm::torch {
namespace {

using python::Owned;
using python::WithoutGil;

// Strong references, kept as long as the process: PyTorch is not unloaded.
struct Parts {
  const dlpack::Exchange* exchange = nullptr;  // null: the short way is closed
  PyObject* tensor_type = nullptr;
  PyObject* parameter_type = nullptr;
  PyObject* empty_like = nullptr;
  PyObject* is_neg = nullptr;    // Tensor.is_neg: DLPack would give such a view's memory as it is
  PyObject* watchers = nullptr;  // a tuple of functions: each returns False or 0, or else watches
  PyObject* forward_mode = nullptr;  // a dict, in which _current_level is -1 outside of a level
  PyObject* profiler = nullptr;      // a dict, in which _is_profiler_enabled is True or False
};

Parts parts;
PyObject *current_level_name, *profiler_name, *requires_grad_name;

// Whether no mode, transform, tracer, profiler or forward-mode level needs to see our operators.
bool is_unwatched() {
  for (Py_ssize_t at = 0; at < PyTuple_GET_SIZE(parts.watchers); ++at) {
    const Owned answer(PyObject_CallNoArgs(PyTuple_GET_ITEM(parts.watchers, at)));
    const int watches = answer ? PyObject_IsTrue(answer.get()) : -1;
    if (watches < 0) PyErr_Clear();
    if (watches != 0) return false;
  }
  PyObject* level = PyDict_GetItemWithError(parts.forward_mode, current_level_name);
  if (!level || !PyLong_Check(level) || PyLong_AsLong(level) >= 0) return false;
  return PyDict_GetItemWithError(parts.profiler, profiler_name) == Py_False;
}

struct Plain {
  dlpack::Tensor view = {};
  DataType type = DataType::float32;

  bool take(PyObject* object) {
    PyObject* kind = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (kind != parts.tensor_type && kind != parts.parameter_type) return false;
    if (parts.exchange->tensor_from_object(object, &view) != 0) {
      PyErr_Clear();
      return false;
    }
    return view.device.type == dlpack::kCpu && view.data && take_type() && is_contiguous() &&
           !is_neg(object);
  }
  void* data() const { return static_cast<char*>(view.data) + view.byte_offset; }
  int64_t elements() const {
    int64_t product = 1;
    for (int32_t axis = 0; axis < view.ndim; ++axis) product *= view.shape[axis];
    return product;
  }
  int64_t bytes() const { return elements() * size_of(type); }
  bool has_sizes(const int64_t* sizes, int64_t count) const {
    if (view.ndim != count) return false;
    for (int64_t axis = 0; axis < count; ++axis)
      if (view.shape[axis] != sizes[axis]) return false;
    return true;
  }

 private:
  static bool is_neg(PyObject* object) {
    const Owned answer(PyObject_CallOneArg(parts.is_neg, object));
    if (!answer) PyErr_Clear();
    return answer.get() != Py_False;
  }
  bool take_type() {
    if (view.dtype.lanes != 1) return false;
    if (view.dtype.code == dlpack::kBfloat && view.dtype.bits == 16)
      type = DataType::bfloat16;
    else if (view.dtype.code == dlpack::kFloat && view.dtype.bits == 32)
      type = DataType::float32;
    else if (view.dtype.code == dlpack::kFloat && view.dtype.bits == 64)
      type = DataType::float64;
    else if (view.dtype.code == dlpack::kFloat && view.dtype.bits == 16)
      type = DataType::float16;
    else
      return false;
    return true;
  }
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int32_t axis = view.ndim - 1; axis >= 0; --axis) {
      if (view.shape[axis] != 1 && view.strides[axis] != expected) return false;
      expected *= view.shape[axis];
    }
    return true;
  }
};

bool requires_grad(PyObject* tensor) {
  if (tensor == Py_None) return false;
  const Owned answer(PyObject_GetAttr(tensor, requires_grad_name));
  if (!answer) PyErr_Clear();
  return answer.get() != Py_False;
}

// normalized_shape, an int or a tuple or a list of ints, as PyTorch takes it.
struct Sizes {
  int64_t size[kMostAxes];
  int64_t count = 0;

  bool take(PyObject* object) {
    if (PyLong_CheckExact(object)) return take_size(object);
    const bool is_tuple = PyTuple_Check(object);
    if (!is_tuple && !PyList_CheckExact(object)) return false;
    const Py_ssize_t given = is_tuple ? PyTuple_GET_SIZE(object) : PyList_GET_SIZE(object);
    if (given < 1 || given > kMostAxes) return false;
    for (Py_ssize_t at = 0; at < given; ++at)
      if (!take_size(is_tuple ? PyTuple_GET_ITEM(object, at) : PyList_GET_ITEM(object, at)))
        return false;
    return true;
  }

 private:
  bool take_size(PyObject* object) {
    if (!PyLong_CheckExact(object)) return false;
    int overflow = 0;
    size[count++] = PyLong_AsLongLongAndOverflow(object, &overflow);
    return overflow == 0;
  }
};

// eps as a number; None, for RMS normalization, is the compute type's machine epsilon.
bool take_eps(PyObject* object, bool centered, Problem& problem) {
  if (PyFloat_CheckExact(object)) {
    problem.eps = PyFloat_AS_DOUBLE(object);
  } else if (object == Py_None && !centered) {
    problem.eps = problem.type == DataType::float64
                      ? std::numeric_limits<double>::epsilon()
                      : static_cast<double>(std::numeric_limits<float>::epsilon());
  } else {
    return false;
  }
  return problem.eps >= 0 && std::isfinite(problem.eps);
}

// What every call begins with, as PyTorch's own: x, weight, bias, normalized_shape, eps, centered,
// zero_centered_weight.
struct PlainCall {
  Plain x, weight, bias;
  PyObject *x_object, *weight_object, *bias_object;
  int64_t cols = 1;

  bool take(PyObject* const* arguments, Problem& problem) {
    x_object = arguments[0];
    weight_object = arguments[1];
    bias_object = arguments[2];
    Sizes sizes;
    if (!x.take(x_object) || !sizes.take(arguments[3]) || sizes.count > x.view.ndim) return false;
    for (int64_t at = 0; at < sizes.count; ++at) {
      if (x.view.shape[x.view.ndim - sizes.count + at] != sizes.size[at]) return false;
      cols *= sizes.size[at];
    }
    problem.type = problem.parameter_type = x.type;
    problem.centered = arguments[5] == Py_True;
    problem.zero_centered_weight = arguments[6] == Py_True;
    if (!take_eps(arguments[4], problem.centered, problem)) return false;
    const bool has_weight = weight_object != Py_None, has_bias = bias_object != Py_None;
    if (has_weight && !take_parameter(weight, weight_object, sizes)) return false;
    if (has_bias && !take_parameter(bias, bias_object, sizes)) return false;
    if (has_weight && has_bias && weight.type != bias.type) return false;
    if (has_weight) problem.parameter_type = weight.type;
    if (has_bias) problem.parameter_type = bias.type;
    problem.weight = weight.view.data ? weight.data() : nullptr;
    problem.shape = {rows(), cols, 1};
    problem.x = {x.data(), cols, 1};
    return true;
  }
  int64_t rows() const { return x.elements() / cols; }
  bool wants_gradient() const {
    return shim.aoti_torch_grad_mode_is_enabled() &&
           (requires_grad(x_object) || requires_grad(weight_object) || requires_grad(bias_object));
  }

 private:
  bool take_parameter(Plain& parameter, PyObject* object, const Sizes& sizes) const {
    return parameter.take(object) && parameter.has_sizes(sizes.size, sizes.count) &&
           (parameter.type == x.type ||
            (size_of(x.type) == 2 && parameter.type == DataType::float32));
  }
};

// A fresh tensor of the type, layout and sizes of this one, and its memory.
Owned empty_like(PyObject* like, void** data) {
  Owned result(PyObject_CallOneArg(parts.empty_like, like));
  if (!result) return result;
  dlpack::Tensor view;
  if (parts.exchange->tensor_from_object(result.get(), &view) != 0) return Owned();
  *data = static_cast<char*>(view.data) + view.byte_offset;
  return result;
}

// (3, rows): mean, rstd, residual; (1, rows) for RMS normalization: rstd.
Owned empty_statistics(DataType type, int64_t kinds, int64_t rows, void** data) {
  int64_t sizes[2] = {kinds, rows}, strides[2] = {rows, 1};
  const auto bits = static_cast<uint8_t>(8 * size_of(compute_type(type)));
  dlpack::Tensor prototype = {nullptr, {dlpack::kCpu, 0}, 2, {dlpack::kFloat, bits, 1},
                              sizes,   strides,           0};
  dlpack::ManagedTensor* managed = nullptr;
  const auto set_error = [](void*, const char*, const char* message) {
    PyErr_SetString(PyExc_MemoryError, message);
  };
  if (parts.exchange->allocate(&prototype, &managed, nullptr, set_error) != 0) return Owned();
  *data = static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset;
  void* object = nullptr;
  if (parts.exchange->managed_to_object(managed, &object) != 0) return Owned();
  return Owned(static_cast<PyObject*>(object));
}

Statistics statistics_in(void* data, DataType type, bool centered, int64_t rows) {
  if (!centered) return {nullptr, data, nullptr};
  const int64_t bytes = rows * size_of(compute_type(type));
  char* first = static_cast<char*>(data);
  return {first, first + bytes, first + 2 * bytes};
}

// y, or nothing with Python's error set.
Owned run_forward(const PlainCall& call, const Problem& problem) {
  void* data = nullptr;
  Owned y = empty_like(call.x_object, &data);
  if (!y) return y;
  const int64_t bytes = call.x.bytes();
  ask_for_huge_pages(data, bytes);
  const Forward job = {
      problem, call.bias.view.data ? call.bias.data() : nullptr, {data, call.cols, 1}};
  Status status;
  {
    const WithoutGil released(bytes);
    status = forward(job, parallel_for());
  }
  if (status == Status::ok) return y;
  PyErr_NoMemory();
  return Owned();
}

bool has_count(const char* name, Py_ssize_t count, Py_ssize_t expected) {
  if (count == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, expected, count);
  return false;
}

}  // namespace

bool open_plain_way(PyObject* given) {
  struct Named {
    const char* name;
    PyObject** part;
  };
  Parts found;
  for (const Named& each :
       {Named{"tensor_type", &found.tensor_type}, Named{"parameter_type", &found.parameter_type},
        Named{"empty_like", &found.empty_like}, Named{"is_neg", &found.is_neg},
        Named{"watchers", &found.watchers}, Named{"forward_mode", &found.forward_mode},
        Named{"profiler", &found.profiler}}) {
    *each.part = PyDict_GetItemString(given, each.name);
    if (!*each.part) return PyErr_Format(PyExc_ValueError, "%s is missing", each.name), false;
    Py_INCREF(*each.part);
  }
  if (!current_level_name) {
    current_level_name = PyUnicode_InternFromString("_current_level");
    profiler_name = PyUnicode_InternFromString("_is_profiler_enabled");
    requires_grad_name = PyUnicode_InternFromString("requires_grad");
  }
  PyObject* capsule = PyDict_GetItemString(given, "exchange");
  if (capsule && PyCapsule_IsValid(capsule, dlpack::kCapsule)) {
    const auto* exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule));
    if (exchange->header.version.major == dlpack::kMajor && exchange->tensor_from_object)
      found.exchange = exchange;
  }
  parts = found;
  return true;
}

// (x, weight, bias, normalized_shape, eps, centered, zero_centered_weight) -> y; True where the call
// is plain but asks for a gradient; None where it is not plain, with nothing touched.
PyObject* plain_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("torch_forward", count, 7)) return nullptr;
  PlainCall call;
  Problem problem = {};
  if (!parts.exchange || !is_unwatched() || !call.take(arguments, problem)) Py_RETURN_NONE;
  if (call.wants_gradient()) Py_RETURN_TRUE;
  return run_forward(call, problem).release();
}

// The arguments of a call that torch_forward has answered with True -> (y, statistics).
PyObject* plain_forward_with_statistics(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("torch_forward_with_statistics", count, 7)) return nullptr;
  PlainCall call;
  Problem problem = {};
  if (!parts.exchange || !call.take(arguments, problem)) Py_RETURN_NONE;
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
  if (!has_count("torch_backward", count, 12)) return nullptr;
  PlainCall call;
  Plain dy, saved;
  Backward job = {};
  Problem& problem = job.problem;
  if (!parts.exchange || !is_unwatched() || !call.take(arguments, problem) ||
      !dy.take(arguments[7]) || dy.type != problem.type ||
      !dy.has_sizes(call.x.view.shape, call.x.view.ndim) || !saved.take(arguments[8]) ||
      saved.type != compute_type(problem.type) ||
      saved.elements() != (problem.centered ? 3 : 1) * call.rows() ||
      shim.aoti_torch_grad_mode_is_enabled())
    Py_RETURN_NONE;
  const bool need[3] = {arguments[9] == Py_True, arguments[10] == Py_True,
                        arguments[11] == Py_True};
  if ((need[1] && !call.weight.view.data) || (need[2] && !call.bias.view.data)) Py_RETURN_NONE;
  problem.statistics = statistics_in(saved.data(), problem.type, problem.centered, call.rows());
  job.dy = {dy.data(), call.cols, 1};
  job.dx = {nullptr, call.cols, 1};
  Owned dx, dweight, dbias;
  if (need[0] && !(dx = empty_like(call.x_object, &job.dx.data))) return nullptr;
  if (need[1] && !(dweight = empty_like(call.weight_object, &job.dweight))) return nullptr;
  if (need[2] && !(dbias = empty_like(call.bias_object, &job.dbias))) return nullptr;
  const int64_t bytes = call.x.bytes();
  if (need[0]) ask_for_huge_pages(job.dx.data, bytes);
  Status status;
  {
    const WithoutGil released(bytes);
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
