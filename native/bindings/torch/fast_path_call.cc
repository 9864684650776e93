#include "fast_path_call.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "bindings/arguments.h"
#include "bindings/owned.h"
#include "c_api.h"
#include "fast_path.h"

namespace layernorm::torch {

const dlpack::Exchange* exchange = nullptr;

namespace {

using python::Owned;

// Strong references, kept as long as the process: PyTorch is not unloaded.
struct Parts {
  PyObject* tensor_type = nullptr;
  PyObject* parameter_type = nullptr;
  PyObject* is_neg = nullptr;    // Tensor.is_neg
  PyObject* watchers = nullptr;  // a tuple of functions: each returns False or 0, or else watches
  PyObject* forward_mode = nullptr;  // a dict, in which _current_level is -1 outside of a level
  PyObject* profiler = nullptr;      // a dict, in which _is_profiler_enabled is True or False
};

Parts parts;
PyObject *current_level_name, *profiler_name, *requires_grad_name;

bool is_tensor(PyObject* object) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == parts.tensor_type || type == parts.parameter_type;
}

bool requires_grad(PyObject* tensor) {
  if (tensor == Py_None) return false;
  const Owned answer(PyObject_GetAttr(tensor, requires_grad_name));
  if (!answer) PyErr_Clear();
  return answer.get() != Py_False;
}

// PyTorch's eps: a float, or for RMS normalization None, the compute type's machine epsilon.
bool take_torch_eps(PyObject* object, Problem& problem) {
  if (object != Py_None) return PyFloat_CheckExact(object) && python::take_eps(object, problem);
  problem.eps = problem.type == DataType::float64
                    ? std::numeric_limits<double>::epsilon()
                    : static_cast<double>(std::numeric_limits<float>::epsilon());
  return !problem.centered;
}

// weight or bias
bool take_parameter(Plain& parameter, PyObject* object, const int64_t* normalized_shape,
                    int64_t axes, DataType x_type) {
  return parameter.take(object) && parameter.has_sizes(normalized_shape, axes) &&
         (parameter.type == x_type ||
          (size_of(x_type) == 2 && parameter.type == DataType::float32));
}

}  // namespace

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

bool Plain::take(PyObject* object) {
  if (!is_tensor(object)) return false;
  if (exchange->tensor_from_object(object, &view) != 0) {
    PyErr_Clear();
    return false;
  }
  return view.device.type == dlpack::kCpu && view.data && take_type() && is_contiguous();
}

int64_t Plain::elements() const {
  int64_t product = 1;
  for (int32_t axis = 0; axis < view.ndim; ++axis) product *= view.shape[axis];
  return product;
}

bool Plain::has_sizes(const int64_t* sizes, int64_t count) const {
  if (view.ndim != count) return false;
  for (int64_t axis = 0; axis < count; ++axis)
    if (view.shape[axis] != sizes[axis]) return false;
  return true;
}

bool Plain::overlaps(const Plain& other) const {
  if (!*this || !other) return false;
  const char *own = static_cast<const char*>(data()), *its = static_cast<const char*>(other.data());
  return own < its + other.bytes() && its < own + bytes();
}

bool Plain::take_type() {
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

bool Plain::is_contiguous() const {
  int64_t expected = 1;
  for (int32_t axis = view.ndim - 1; axis >= 0; --axis) {
    if (view.shape[axis] != 1 && view.strides[axis] != expected) return false;
    expected *= view.shape[axis];
  }
  return true;
}

bool FastCall::take(PyObject* const* arguments, Over over, Problem& problem) {
  x_object = arguments[0];
  weight_object = arguments[1];
  bias_object = arguments[2];
  python::Integers given;
  if (!is_tensor(x_object) || !given.take(arguments[3]) || !x.take(x_object)) return false;
  axes = over == Over::axes ? given.trailing(x.view.ndim) : given.count;
  if (axes < 1 || axes > x.view.ndim) return false;
  if (over == Over::normalized_shape && !std::equal(given.value, given.value + axes, sizes()))
    return false;
  for (int64_t at = 0; at < axes; ++at) cols *= sizes()[at];
  problem.type = problem.parameter_type = x.type;
  if (!python::take_flags(arguments[5], arguments[6], problem)) return false;
  if (over == Over::axes ? !python::take_eps(arguments[4], problem)
                         : !take_torch_eps(arguments[4], problem))
    return false;
  const bool has_weight = weight_object != Py_None, has_bias = bias_object != Py_None;
  if (has_weight && !take_parameter(weight, weight_object, sizes(), axes, x.type)) return false;
  if (has_bias && !take_parameter(bias, bias_object, sizes(), axes, x.type)) return false;
  if (has_weight && has_bias && weight.type != bias.type) return false;
  if (has_weight) problem.parameter_type = weight.type;
  if (has_bias) problem.parameter_type = bias.type;
  problem.weight = weight.view.data ? weight.data() : nullptr;
  problem.shape = {rows(), cols, 1};
  problem.x = {x.data(), cols, 1};
  return true;
}

bool FastCall::wants_gradient() const {
  return c_api.aoti_torch_grad_mode_is_enabled() &&
         (requires_grad(x_object) || requires_grad(weight_object) || requires_grad(bias_object));
}

bool FastCall::has_negated() const {
  return is_negated(x_object) || is_negated(weight_object) || is_negated(bias_object);
}

bool is_negated(PyObject* tensor) {
  if (tensor == Py_None) return false;
  const Owned answer(PyObject_CallOneArg(parts.is_neg, tensor));
  if (!answer) PyErr_Clear();
  return answer.get() != Py_False;
}

bool wants_gradient(PyObject* tensor) {
  return c_api.aoti_torch_grad_mode_is_enabled() && requires_grad(tensor);
}

bool open_fast_path(PyObject* given) {
  struct Named {
    const char* name;
    PyObject** part;
  };
  Parts found;
  for (const Named& each :
       {Named{"tensor_type", &found.tensor_type}, Named{"parameter_type", &found.parameter_type},
        Named{"is_neg", &found.is_neg}, Named{"watchers", &found.watchers},
        Named{"forward_mode", &found.forward_mode}, Named{"profiler", &found.profiler}}) {
    *each.part = PyDict_GetItemString(given, each.name);
    if (!*each.part) return PyErr_Format(PyExc_ValueError, "%s is missing", each.name), false;
  }
  for (const Named& each :
       {Named{"_current_level", &current_level_name}, Named{"_is_profiler_enabled", &profiler_name},
        Named{"requires_grad", &requires_grad_name}})
    if (!*each.part && !(*each.part = PyUnicode_InternFromString(each.name))) return false;
  PyObject* capsule = PyDict_GetItemString(given, "exchange");
  if (capsule && PyCapsule_IsValid(capsule, dlpack::kCapsule)) {
    const auto* given_exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule));
    if (given_exchange->header.version.major == dlpack::kMajor &&
        given_exchange->tensor_from_object && given_exchange->managed_to_object)
      exchange = given_exchange;
  }
  for (PyObject* each : {found.tensor_type, found.parameter_type, found.is_neg, found.watchers,
                         found.forward_mode, found.profiler})
    Py_INCREF(each);
  parts = found;
  return true;
}

}  // namespace layernorm::torch
