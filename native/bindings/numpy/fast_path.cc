// The short way for plain arrays: contiguous, aligned, normalized over the last axis. One look at
// each argument, no Python in between; whatever is not plain is left to the general way.
#define NO_IMPORT_ARRAY
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "arrays.h"
#include "runtime/thread_pool.h"

namespace layernorm::python {
namespace {

PyArrayObject* plain(PyObject* object, DataType* type) {
  if (!PyArray_CheckExact(object)) return nullptr;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  const bool is_plain =
      PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISALIGNED(array) && PyArray_ISNOTSWAPPED(array);
  return is_plain && data_type(array, type) ? array : nullptr;
}

bool same_shape(PyArrayObject* a, PyArrayObject* b) {
  return PyArray_NDIM(a) == PyArray_NDIM(b) &&
         PyArray_CompareLists(PyArray_DIMS(a), PyArray_DIMS(b), PyArray_NDIM(a));
}

bool overlap(PyArrayObject* a, PyArrayObject* b) {
  const char *a_begin = PyArray_BYTES(a), *b_begin = PyArray_BYTES(b);
  return a_begin < b_begin + PyArray_NBYTES(b) && b_begin < a_begin + PyArray_NBYTES(a);
}

// x, and the problem as far as x tells.
struct PlainX {
  PyArrayObject* array = nullptr;
  int64_t cols = 0;

  bool take(PyObject* object, Problem& problem) {
    array = plain(object, &problem.type);
    if (!array || PyArray_NDIM(array) < 1 || PyArray_SIZE(array) == 0) return false;
    cols = PyArray_DIM(array, PyArray_NDIM(array) - 1);
    problem.shape = {PyArray_SIZE(array) / cols, cols, 1};
    problem.x = {PyArray_DATA(array), cols, 1};
    problem.parameter_type = problem.type;
    return true;
  }

  // A weight or bias: absent, or (cols,) and of a type that x takes.
  bool take_parameter(PyObject* object, DataType type, PyArrayObject** parameter,
                      DataType* parameter_type) const {
    if (object == Py_None) return true;
    PyArrayObject* given = plain(object, parameter_type);
    if (!given || PyArray_NDIM(given) != 1 || PyArray_DIM(given, 0) != cols ||
        !accepts_parameter(type, *parameter_type))
      return false;
    *parameter = given;
    return true;
  }

  // Fresh statistics: x's shape with the last axis kept as 1.
  OwnedArray new_statistics(DataType type) const {
    npy_intp shape[NPY_MAXDIMS];
    const int dimensions = PyArray_NDIM(array);
    std::copy_n(PyArray_DIMS(array), dimensions, shape);
    shape[dimensions - 1] = 1;
    return OwnedArray(PyArray_SimpleNew(
        dimensions, shape, compute_type(type) == DataType::float64 ? NPY_DOUBLE : NPY_FLOAT));
  }
  bool take_statistics(PyObject* object, DataType type, void** statistics) const {
    if (object == Py_None) return true;
    DataType found;
    PyArrayObject* given = plain(object, &found);
    const int dimensions = PyArray_NDIM(array);
    if (!given || found != compute_type(type) || PyArray_NDIM(given) != dimensions ||
        PyArray_DIM(given, dimensions - 1) != 1 ||
        !PyArray_CompareLists(PyArray_DIMS(given), PyArray_DIMS(array), dimensions - 1))
      return false;
    *statistics = PyArray_DATA(given);
    return true;
  }
};

bool take_flags(PyObject* centered, PyObject* zero_centered_weight, Problem& problem) {
  if (!PyBool_Check(centered) || !PyBool_Check(zero_centered_weight)) return false;
  problem.centered = centered == Py_True;
  problem.zero_centered_weight = zero_centered_weight == Py_True;
  return true;
}

bool take_eps(PyObject* object, Problem& problem) {
  if (!PyFloat_CheckExact(object)) return false;
  problem.eps = PyFloat_AS_DOUBLE(object);
  return problem.eps >= 0 && std::isfinite(problem.eps);
}

bool is_axis(PyObject* object, long axis) {
  int overflow = 0;
  return PyLong_CheckExact(object) && PyLong_AsLongAndOverflow(object, &overflow) == axis &&
         !overflow;
}

// A plain forward: everything but the outputs' memory.
struct PlainForward {
  Forward job = {};
  PlainX x;
  PyArrayObject* out = nullptr;

  // arguments: x, weight, bias, axis, eps, out, centered, zero_centered_weight
  bool take(PyObject* const* arguments) {
    Problem& problem = job.problem;
    if (!x.take(arguments[0], problem) || !is_axis(arguments[3], -1) ||
        !take_eps(arguments[4], problem) || !take_flags(arguments[6], arguments[7], problem))
      return false;
    PyArrayObject *weight = nullptr, *bias = nullptr;
    DataType weight_type = problem.type, bias_type = problem.type;
    if (!x.take_parameter(arguments[1], problem.type, &weight, &weight_type) ||
        !x.take_parameter(arguments[2], problem.type, &bias, &bias_type) ||
        (weight && bias && weight_type != bias_type))
      return false;
    problem.parameter_type = weight ? weight_type : bias_type;
    if (weight) problem.weight = PyArray_DATA(weight);
    if (bias) job.bias = PyArray_DATA(bias);
    if (arguments[5] == Py_None) return true;
    DataType out_type;
    out = plain(arguments[5], &out_type);
    return out && out_type == problem.type && PyArray_ISWRITEABLE(out) &&
           same_shape(out, x.array) && (out == x.array || !overlap(out, x.array)) &&
           !(weight && overlap(out, weight)) && !(bias && overlap(out, bias));
  }

  // y, or nothing where there is no memory (and Python's error is set).
  OwnedArray run() {
    OwnedArray y =
        out ? OwnedArray(Py_NewRef(reinterpret_cast<PyObject*>(out)))
            : new_array(PyArray_DESCR(x.array), PyArray_NDIM(x.array), PyArray_DIMS(x.array));
    if (!y) return y;
    job.y = {y.data(), x.cols, 1};
    Status status;
    {
      const WithoutGil released(PyArray_NBYTES(x.array));
      status = forward(job, pool_threads());
    }
    if (status == Status::ok) return y;
    PyErr_NoMemory();
    return OwnedArray();
  }
};

bool has_count(const char* name, Py_ssize_t count, Py_ssize_t expected) {
  if (count == expected) return true;
  PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, expected, count);
  return false;
}

}  // namespace

// (x, weight, bias, axis, eps, out, centered, zero_centered_weight) -> y
PyObject* try_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("try_forward", count, 8)) return nullptr;
  PlainForward call;
  if (!call.take(arguments)) Py_RETURN_NONE;
  return call.run().release();
}

// The same arguments -> (y, mean, rstd, residual), the outer two None for RMS normalization.
PyObject* try_forward_with_statistics(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("try_forward_with_statistics", count, 8)) return nullptr;
  PlainForward call;
  if (!call.take(arguments)) Py_RETURN_NONE;
  const DataType type = call.job.problem.type;
  const bool centered = call.job.problem.centered;
  OwnedArray rstd = call.x.new_statistics(type), mean, residual;
  if (centered) {
    mean = call.x.new_statistics(type);
    residual = call.x.new_statistics(type);
  }
  if (!rstd || (centered && (!mean || !residual))) return nullptr;
  call.job.problem.statistics = {mean.data(), rstd.data(), residual.data()};
  OwnedArray y = call.run();
  if (!y) return nullptr;
  return Py_BuildValue("(NNNN)", y.release(), mean.release_or_none(), rstd.release(),
                       residual.release_or_none());
}

// (dy, x, mean, rstd, residual, weight, axis, eps, parameter_type, need_dx, need_dweight,
//  need_dbias, centered, zero_centered_weight) -> (dx, dweight, dbias)
PyObject* try_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!has_count("try_backward", count, 14)) return nullptr;
  Backward job = {};
  Problem& problem = job.problem;
  PlainX x;
  DataType dy_type;
  PyArrayObject* dy = plain(arguments[0], &dy_type);
  if (!dy || !x.take(arguments[1], problem) || dy_type != problem.type ||
      !same_shape(dy, x.array) || !take_eps(arguments[7], problem) ||
      !take_flags(arguments[12], arguments[13], problem))
    Py_RETURN_NONE;
  const long last = PyArray_NDIM(x.array) - 1;
  PyObject* axis = arguments[6];
  if (!PyTuple_CheckExact(axis) || PyTuple_GET_SIZE(axis) != 1 ||
      !is_axis(PyTuple_GET_ITEM(axis, 0), last))
    Py_RETURN_NONE;
  Statistics& saved = problem.statistics;
  if (!x.take_statistics(arguments[2], problem.type, &saved.mean) ||
      !x.take_statistics(arguments[3], problem.type, &saved.rstd) ||
      !x.take_statistics(arguments[4], problem.type, &saved.residual) || !saved.rstd ||
      (saved.mean != nullptr) != problem.centered)
    Py_RETURN_NONE;

  PyArrayObject* weight = nullptr;
  PyArray_Descr* parameter_descr = PyArray_DESCR(x.array);
  if (!x.take_parameter(arguments[5], problem.type, &weight, &problem.parameter_type))
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
  const npy_intp cols = x.cols;
  OwnedArray dx, dweight, dbias;
  if (need_dx) dx = new_array(PyArray_DESCR(x.array), PyArray_NDIM(x.array), PyArray_DIMS(x.array));
  if (need_dweight) dweight = new_array(parameter_descr, 1, &cols);
  if (need_dbias) dbias = new_array(parameter_descr, 1, &cols);
  if ((need_dx && !dx) || (need_dweight && !dweight) || (need_dbias && !dbias)) return nullptr;
  job.dy = {PyArray_DATA(dy), x.cols, 1};
  job.dx = {dx.data(), x.cols, 1};
  job.dweight = dweight.data();
  job.dbias = dbias.data();
  Status status;
  {
    const WithoutGil released(PyArray_NBYTES(x.array));
    status = backward(job, pool_threads());
  }
  if (status != Status::ok) return PyErr_NoMemory();
  return Py_BuildValue("(NNN)", dx.release_or_none(), dweight.release_or_none(),
                       dbias.release_or_none());
}

}  // namespace layernorm::python
