#include "fast_path_call.h"

#include <algorithm>
#include <limits>

#include "bindings/owned.h"
#include "c_api.h"

namespace layernorm::torch {

const dlpack::Exchange* exchange = nullptr;

namespace {

using python::Owned;

// Strong references, kept as long as the process: PyTorch is not unloaded.
struct Parts {
  PyObject* tensor_type = nullptr;
  PyObject* parameter_type = nullptr;
  PyObject* is_neg = nullptr;        // Tensor.is_neg
  PyObject* watchers = nullptr;      // a tuple of functions: anything but False or 0 means watched
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

bool type_of(const dlpack::Type& given, DataType* type) {
  for (const DataType each : kDataTypes) {
    const dlpack::Type known = dlpack::type_of(each);
    if (given.code != known.code || given.bits != known.bits || given.lanes != 1) continue;
    *type = each;
    return true;
  }
  return false;
}

}  // namespace

bool is_unwatched() {
  if (!parts.watchers) return false;  // torch_load has not been called
  for (Py_ssize_t at = 0; at < PyTuple_Size(parts.watchers); ++at) {
    const Owned answer(PyObject_CallNoArgs(PyTuple_GetItem(parts.watchers, at)));
    const int watches = answer ? PyObject_IsTrue(answer.get()) : -1;
    if (watches < 0) PyErr_Clear();
    if (watches != 0) return false;
  }
  const Owned level(PyObject_GetItem(parts.forward_mode, current_level_name));
  if (!level) PyErr_Clear();
  if (!level || !PyLong_Check(level.get()) || PyLong_AsLong(level.get()) >= 0) return false;
  return PyDict_GetItemWithError(parts.profiler, profiler_name) == Py_False;
}

bool view_of(PyObject* object, View* view) {
  if (!is_tensor(object)) return false;
  dlpack::Tensor found = {};
  if (exchange->tensor_from_object(object, &found) != 0) {
    PyErr_Clear();
    return false;
  }
  if (found.device.type != dlpack::kCpu || !found.data || !type_of(found.dtype, &view->type))
    return false;
  view->axes = found.ndim;
  view->sizes = found.shape;
  view->strides = found.strides;
  view->data = static_cast<char*>(found.data) + found.byte_offset;
  view->is_served = true;
  return true;
}

bool FastCall::take(PyObject* const* arguments, Over over, Problem& problem) {
  x_object = arguments[0];
  weight_object = arguments[1];
  bias_object = arguments[2];
  python::Integers given;
  // x's view comes after take(), which may run Python code.
  if (!is_tensor(x_object) || !given.take(arguments[3]) || !view_of(x_object, &x)) return false;
  axes = over == Over::axes ? given.count_if_last_axes(x.axes)
                            : given.count_if_last_sizes(x.axes, x.sizes);
  if (axes < 1) return false;
  for (int64_t at = 0; at < axes; ++at) cols *= normalized_shape()[at];
  problem.type = problem.parameter_type = x.type;
  if (!python::take_flags(arguments[5], arguments[6], problem)) return false;
  if (over == Over::axes ? !python::take_eps(arguments[4], problem)
                         : !take_torch_eps(arguments[4], problem))
    return false;
  const bool has_weight = weight_object != Py_None, has_bias = bias_object != Py_None;
  if (has_weight && !take_parameter(weight_object, &weight)) return false;
  if (has_bias && !take_parameter(bias_object, &bias)) return false;
  if (has_weight && has_bias && weight.type != bias.type) return false;
  if (has_weight) problem.parameter_type = weight.type;
  if (has_bias) problem.parameter_type = bias.type;
  problem.weight = weight.data;
  // Over axes, y has the strides of such an x.
  return over == Over::normalized_shape || x.is_contiguous() || x.has_gaps();
}

bool FastCall::take_like_x(PyObject* object, View* view) const {
  return view_of(object, view) && view->type == x.type && view->has_sizes_of(x);
}

bool FastCall::take_residual(PyObject* object) {
  residual_object = object;
  return object == Py_None || take_like_x(object, &residual);
}

bool FastCall::take_gate(PyObject* const* arguments, Gate& of_job) {
  gate_object = arguments[0];
  of_job.activation = arguments[1] == Py_True ? Activation::silu : Activation::sigmoid;
  of_job.norm_first = arguments[2] == Py_True;
  return take_like_x(gate_object, &gate);
}

bool FastCall::place(std::initializer_list<Placed> tensors, Problem& problem) const {
  for (const auto& [tensor, array] : tensors)
    if (array && tensor && !tensor->is_contiguous()) return place_with_strides(tensors, problem);
  problem.shape = {rows(), cols, 1};
  for (const auto& [tensor, array] : tensors)
    if (array) *array = contiguous_array(tensor ? tensor->data : nullptr, problem.shape);
  problem.statistics.strides = {1};
  return true;
}

bool FastCall::place_with_strides(std::initializer_list<Placed> tensors, Problem& problem) const {
  if (x.axes > kMostAxes) return false;
  Axes normalized;
  normalized.count = x.axes;
  std::fill(normalized.normalized + x.axes - axes, normalized.normalized + x.axes, true);
  Order order;
  if (!keep_order(normalized, x.sizes, &order)) return false;
  Ordered ordered[kMostTensors];
  Order::Placed placed[kMostTensors];
  int count = 0;
  for (const auto& [tensor, array] : tensors) {
    if (!array) continue;
    Ordered& here = ordered[count];
    placed[count++] = {&here, array};
    if (!tensor) {
      contiguous_strides(x.axes, x.sizes, here.strides);
      continue;
    }
    here.data = tensor->data;
    order.apply(tensor->strides, here.strides);
    if (!order.fits(here.strides)) return false;
  }
  return order.place(placed, count, problem);
}

bool FastCall::take_parameter(PyObject* object, View* parameter) const {
  return view_of(object, parameter) && parameter->is_contiguous() &&
         parameter->has_sizes(axes, normalized_shape()) &&
         accepts_parameter(x.type, parameter->type);
}

bool FastCall::wants_gradient() const {
  return c_api.aoti_torch_grad_mode_is_enabled() &&
         (requires_grad(x_object) || requires_grad(weight_object) || requires_grad(bias_object) ||
          requires_grad(residual_object) || requires_grad(gate_object));
}

bool FastCall::has_negated() const {
  return is_negated(x_object) || is_negated(weight_object) || is_negated(bias_object) ||
         is_negated(residual_object) || is_negated(gate_object);
}

bool is_negated(PyObject* tensor) {
  if (tensor == Py_None) return false;
  const Owned answer(PyObject_CallFunctionObjArgs(parts.is_neg, tensor, nullptr));
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
