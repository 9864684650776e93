#include "fast_path.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "arrays.h"
#include "bindings/arguments.h"
#include "bindings/gil.h"
#include "layout.h"
#include "runtime/thread_pool.h"

namespace layernorm::numpy {
namespace {

using python::has_count;
using python::Over;
using python::Owned;
using python::tuple_of;

// Null for anything but a contiguous, aligned ndarray of one of our types.
PyArrayObject* fast_path_array(PyObject* object, DataType* type) {
  if (!PyArray_CheckExact(object)) return nullptr;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  const bool is_in_order =
      PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISALIGNED(array) && PyArray_ISNOTSWAPPED(array);
  return is_in_order && data_type(array, type) ? array : nullptr;
}

bool same_shape(PyArrayObject* a, PyArrayObject* b) {
  return PyArray_NDIM(a) == PyArray_NDIM(b) &&
         PyArray_CompareLists(PyArray_DIMS(a), PyArray_DIMS(b), PyArray_NDIM(a));
}

bool overlap(PyArrayObject* a, PyArrayObject* b) {
  const char *a_begin = PyArray_BYTES(a), *b_begin = PyArray_BYTES(b);
  return a_begin < b_begin + PyArray_NBYTES(b) && b_begin < a_begin + PyArray_NBYTES(a);
}

// x, and the number of its last axes that are normalized.
struct Rows {
  PyArrayObject* x = nullptr;
  int axes = 0;
  int64_t cols = 1;

  bool take(PyObject* object, int trailing_axes, Problem& problem) {
    x = fast_path_array(object, &problem.type);
    axes = trailing_axes;
    if (!x || axes < 1 || axes > PyArray_NDIM(x) || PyArray_SIZE(x) == 0) return false;
    for (int at = 0; at < axes; ++at) cols *= normalized_shape()[at];
    problem.shape = {PyArray_SIZE(x) / cols, cols, 1};
    problem.x = contiguous_array(PyArray_DATA(x), problem.shape);
    problem.parameter_type = problem.type;
    return true;
  }

  int kept_axes() const { return PyArray_NDIM(x) - axes; }
  const npy_intp* normalized_shape() const { return PyArray_DIMS(x) + kept_axes(); }

  // A weight or bias: None, or of the normalized shape and a type that goes with x's.
  bool take_parameter(PyObject* object, DataType type, PyArrayObject** parameter,
                      DataType* parameter_type) const {
    if (object == Py_None) return true;
    PyArrayObject* given = fast_path_array(object, parameter_type);
    if (!given || PyArray_NDIM(given) != axes ||
        !PyArray_CompareLists(PyArray_DIMS(given), normalized_shape(), axes) ||
        !accepts_parameter(type, *parameter_type))
      return false;
    *parameter = given;
    return true;
  }

  // Statistics have x's shape with the normalized axes kept as 1.
  OwnedArray new_statistics(DataType type) const {
    npy_intp shape[NPY_MAXDIMS];
    std::copy_n(PyArray_DIMS(x), kept_axes(), shape);
    std::fill_n(shape + kept_axes(), axes, 1);
    return OwnedArray(PyArray_SimpleNew(
        PyArray_NDIM(x), shape, compute_type(type) == DataType::float64 ? NPY_DOUBLE : NPY_FLOAT));
  }
  bool take_statistics(PyObject* object, DataType type, void** statistics) const {
    if (object == Py_None) return true;
    DataType found;
    PyArrayObject* given = fast_path_array(object, &found);
    if (!given || found != compute_type(type) || PyArray_NDIM(given) != PyArray_NDIM(x) ||
        !PyArray_CompareLists(PyArray_DIMS(given), PyArray_DIMS(x), kept_axes()))
      return false;
    for (int axis = kept_axes(); axis < PyArray_NDIM(x); ++axis)
      if (PyArray_DIM(given, axis) != 1) return false;
    *statistics = PyArray_DATA(given);
    return true;
  }

  // The normalized axes as Stats holds them: sorted, none negative.
  PyObject* new_axes() const {
    return python::tuple_of_ints(axes, [this](Py_ssize_t at) { return kept_axes() + at; });
  }
};

constexpr Py_ssize_t kArguments = 8, kOptional = 2;  // of a forward

// Whether a tuple holds the last of `ndim` axes as Stats does.
bool are_last_axes(PyObject* tuple, Py_ssize_t ndim) {
  const Py_ssize_t count = PyTuple_Size(tuple);
  for (Py_ssize_t at = 0; at < count; ++at) {
    PyObject* axis = PyTuple_GetItem(tuple, at);
    int overflow = 0;
    if (!PyLong_CheckExact(axis) ||
        PyLong_AsLongAndOverflow(axis, &overflow) != ndim - count + at || overflow)
      return false;
  }
  return true;
}

// All of a forward but the memory of its results.
struct ForwardCall {
  Forward job = {};
  Rows rows;
  PyArrayObject *weight = nullptr, *bias = nullptr, *residual = nullptr;
  PyArrayObject *out = nullptr, *total = nullptr;
  PyArray_Descr* parameter_descr = nullptr;  // borrowed; null without a parameter

  // arguments: x, weight, bias, axis or normalized_shape, eps, out, centered, zero_centered_weight;
  // then, where the count says so, residual, total
  bool take(PyObject* const* arguments, Py_ssize_t count, Over over) {
    Problem& problem = job.problem;
    python::Integers given;
    if (!PyArray_CheckExact(arguments[0]) || !given.take(arguments[3]) ||
        !python::take_eps(arguments[4], problem) ||
        !python::take_flags(arguments[6], arguments[7], problem))
      return false;
    auto* x = reinterpret_cast<PyArrayObject*>(arguments[0]);
    const int axes = over == Over::axes
                         ? given.count_if_last_axes(PyArray_NDIM(x))
                         : given.count_if_last_sizes(PyArray_NDIM(x), PyArray_DIMS(x));
    if (!rows.take(arguments[0], axes, problem)) return false;
    DataType weight_type = problem.type, bias_type = problem.type;
    if (!rows.take_parameter(arguments[1], problem.type, &weight, &weight_type) ||
        !rows.take_parameter(arguments[2], problem.type, &bias, &bias_type) ||
        (weight && bias && weight_type != bias_type))
      return false;
    problem.parameter_type = weight ? weight_type : bias_type;
    if (weight) problem.weight = PyArray_DATA(weight);
    if (bias) job.bias = PyArray_DATA(bias);
    if (weight || bias) parameter_descr = PyArray_DESCR(weight ? weight : bias);
    PyObject* const given_residual = count > kArguments ? arguments[kArguments] : Py_None;
    PyObject* const given_total = count > kArguments ? arguments[kArguments + 1] : Py_None;
    if (given_residual != Py_None) {
      residual = like_x(given_residual);
      if (!residual) return false;
    }
    return (given_total == Py_None || (residual && take_output(given_total, &total))) &&
           (arguments[5] == Py_None || take_output(arguments[5], &out)) &&
           !(out && total && overlap(out, total));
  }

  // y; null, with Python's error set, if memory runs out. With a residual the sum too.
  OwnedArray run(OwnedArray* sum) {
    OwnedArray y = new_or(out);
    if (!y) return y;
    job.y = contiguous_array(y.data(), job.problem.shape);
    if (residual) {
      *sum = new_or(total);
      if (!*sum) return OwnedArray();
      job.addends[0] = job.problem.x;
      job.addends[1] = contiguous_array(PyArray_DATA(residual), job.problem.shape);
      job.problem.x.data = sum->data();
    }
    return python::run(forward, job, pool_threads()) ? std::move(y) : OwnedArray();
  }

 private:
  PyArrayObject* like_x(PyObject* object) const {
    DataType type;
    PyArrayObject* array = fast_path_array(object, &type);
    return array && type == job.problem.type && same_shape(array, rows.x) ? array : nullptr;
  }
  // False unless it can be written: it may be x or the residual itself.
  bool take_output(PyObject* object, PyArrayObject** output) const {
    PyArrayObject* const array = like_x(object);
    if (!array || !PyArray_ISWRITEABLE(array)) return false;
    for (PyArrayObject* input : {rows.x, residual, weight, bias})
      if (input && input != array && overlap(input, array)) return false;
    *output = array;
    return array != weight && array != bias;
  }
  OwnedArray new_or(PyArrayObject* given) const {
    return given ? OwnedArray(Py_NewRef(reinterpret_cast<PyObject*>(given)))
                 : new_array(PyArray_DESCR(rows.x), PyArray_NDIM(rows.x), PyArray_DIMS(rows.x));
  }
};

PyObject* try_forward_with_statistics(const char* name, PyObject* const* arguments,
                                      Py_ssize_t count, Over over) {
  if (!has_count(name, count, kArguments, kOptional)) return nullptr;
  ForwardCall call;
  if (!call.take(arguments, count, over)) Py_RETURN_NONE;
  Problem& problem = call.job.problem;
  OwnedArray rstd = call.rows.new_statistics(problem.type), mean, residual;
  if (problem.centered) {
    mean = call.rows.new_statistics(problem.type);
    residual = call.rows.new_statistics(problem.type);
  }
  // Before run(): while it has released the GIL, another thread may change x's shape or weight's type.
  Owned axes(call.rows.new_axes());
  Owned parameter_type(Py_XNewRef(reinterpret_cast<PyObject*>(call.parameter_descr)));
  if (!rstd || (problem.centered && (!mean || !residual)) || !axes) return nullptr;
  problem.statistics =
      contiguous_statistics(mean.data(), rstd.data(), residual.data(), problem.shape);
  OwnedArray total, y = call.run(&total);
  if (!y) return nullptr;
  PyObject* const fields =
      tuple_of({mean.release_or_none(), rstd.release(), residual.release_or_none(), axes.release(),
                PyFloat_FromDouble(problem.eps), parameter_type.release_or_none()});
  return total ? tuple_of({y.release(), total.release(), fields}) : tuple_of({y.release(), fields});
}

}  // namespace

// (x, weight, bias, axis, eps, out, centered, zero_centered_weight) -> y; with (residual, total)
// after them -> (y, total)
PyObject* try_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("try_forward", count, kArguments, kOptional)) return nullptr;
  ForwardCall call;
  if (!call.take(arguments, count, Over::axes)) Py_RETURN_NONE;
  OwnedArray total, y = call.run(&total);
  return y && total ? tuple_of({y.release(), total.release()}) : y.release();
}

// The same arguments -> (y, (mean, rstd, residual, axes, eps, parameter_type)), or (y, total, ...);
// the last are the fields of layernorm.numpy.Stats; mean and residual are None for RMS normalization.
PyObject* try_forward_with_statistics(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return try_forward_with_statistics("try_forward_with_statistics", arguments, count, Over::axes);
}

// The same with normalized_shape, as a layer has it, instead of axis.
PyObject* try_layer_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return try_forward_with_statistics("try_layer_forward", arguments, count, Over::normalized_shape);
}

// (dy, x, mean, rstd, residual, weight, axes, eps, parameter_type, need_dx, need_dweight,
//  need_dbias, centered, zero_centered_weight), or these and dtotal -> (dx, dweight, dbias)
PyObject* try_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("try_backward", count, 14, 1)) return nullptr;
  Backward job = {};
  Problem& problem = job.problem;
  Rows rows;
  DataType dy_type;
  PyArrayObject* dy = fast_path_array(arguments[0], &dy_type);
  PyObject* axes = arguments[6];
  if (!dy || !PyTuple_CheckExact(axes) || PyTuple_Size(axes) > NPY_MAXDIMS ||
      !rows.take(arguments[1], static_cast<int>(PyTuple_Size(axes)), problem) ||
      !are_last_axes(axes, PyArray_NDIM(rows.x)) || dy_type != problem.type ||
      !same_shape(dy, rows.x) || !python::take_eps(arguments[7], problem) ||
      !python::take_flags(arguments[12], arguments[13], problem))
    Py_RETURN_NONE;
  Statistics& saved = problem.statistics =
      contiguous_statistics(nullptr, nullptr, nullptr, problem.shape);
  if (!rows.take_statistics(arguments[2], problem.type, &saved.mean) ||
      !rows.take_statistics(arguments[3], problem.type, &saved.rstd) ||
      !rows.take_statistics(arguments[4], problem.type, &saved.residual) || !saved.rstd ||
      (saved.mean != nullptr) != problem.centered)
    Py_RETURN_NONE;

  if (count > 14 && arguments[14] != Py_None) {
    DataType type;
    PyArrayObject* dtotal = fast_path_array(arguments[14], &type);
    if (!dtotal || type != problem.type || !same_shape(dtotal, rows.x)) Py_RETURN_NONE;
    job.dtotal = contiguous_array(PyArray_DATA(dtotal), problem.shape);
  }

  PyArrayObject* weight = nullptr;
  PyArray_Descr* parameter_descr = PyArray_DESCR(rows.x);
  if (!rows.take_parameter(arguments[5], problem.type, &weight, &problem.parameter_type))
    Py_RETURN_NONE;
  if (weight) {
    problem.weight = PyArray_DATA(weight);
    parameter_descr = PyArray_DESCR(weight);
  }
  if (arguments[8] != Py_None) {
    DataType forward_type;
    if (!PyArray_DescrCheck(arguments[8])) Py_RETURN_NONE;
    auto* descr = reinterpret_cast<PyArray_Descr*>(arguments[8]);
    if (!data_type(descr, &forward_type) || !PyDataType_ISNOTSWAPPED(descr) ||
        !accepts_parameter(problem.type, forward_type) ||
        (weight && forward_type != problem.parameter_type))
      Py_RETURN_NONE;
    problem.parameter_type = forward_type;
    parameter_descr = descr;
  }

  for (const int need : {9, 10, 11})
    if (!PyBool_Check(arguments[need]) && arguments[need] != Py_None) Py_RETURN_NONE;
  const bool need_dx = arguments[9] == Py_True;
  const bool need_dweight = arguments[10] == Py_None ? weight != nullptr : arguments[10] == Py_True;
  const bool need_dbias = arguments[11] == Py_True;
  OwnedArray dx, dweight, dbias;
  if (need_dx) dx = new_array(PyArray_DESCR(rows.x), PyArray_NDIM(rows.x), PyArray_DIMS(rows.x));
  if (need_dweight) dweight = new_array(parameter_descr, rows.axes, rows.normalized_shape());
  if (need_dbias) dbias = new_array(parameter_descr, rows.axes, rows.normalized_shape());
  if ((need_dx && !dx) || (need_dweight && !dweight) || (need_dbias && !dbias)) return nullptr;
  job.dy = contiguous_array(PyArray_DATA(dy), problem.shape);
  job.dx = contiguous_array(dx.data(), problem.shape);
  job.dweight = dweight.data();
  job.dbias = dbias.data();
  if (!python::run(backward, job, pool_threads())) return nullptr;
  return tuple_of({dx.release_or_none(), dweight.release_or_none(), dbias.release_or_none()});
}

}  // namespace layernorm::numpy
