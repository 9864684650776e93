#include "general.h"

#include <initializer_list>

#define NO_IMPORT_ARRAY
#include "arrays.h"
#include "bindings/arguments.h"
#include "bindings/gil.h"
#include "runtime/thread_pool.h"

namespace layernorm::numpy {
namespace {

// The arguments of forward() and backward(), taken one by one; the first mistake is kept.
class Arguments {
 public:
  Arguments(const char* name, PyObject* const* arguments, Py_ssize_t count, Py_ssize_t expected)
      : next_(arguments), ok_(python::has_count(name, count, expected)) {}
  bool ok() const { return ok_; }

  bool flag() {
    const int value = ok_ ? PyObject_IsTrue(*next_++) : 0;
    ok_ = ok_ && value >= 0;
    return value == 1;
  }
  double number() {
    const double value = ok_ ? PyFloat_AsDouble(*next_++) : 0;
    ok_ = ok_ && !PyErr_Occurred();
    return value;
  }
  Shape shape() {
    Shape shape = {};
    PyObject* tuple = ok_ ? *next_++ : nullptr;
    ok_ = ok_ && PyArg_ParseTuple(tuple, "LLL", as_long_long(&shape.outer),
                                  as_long_long(&shape.cols), as_long_long(&shape.inner));
    return shape;
  }
  // The data of an ndarray of `type`; null for None.
  void* array(DataType type) {
    if (!ok_) return nullptr;
    PyObject* object = *next_++;
    if (object == Py_None) return nullptr;
    DataType found;
    if (!PyArray_Check(object) || !data_type(reinterpret_cast<PyArrayObject*>(object), &found) ||
        found != type) {
      PyErr_Format(PyExc_TypeError, "expected an array of another type, got %R", object);
      ok_ = false;
      return nullptr;
    }
    return PyArray_DATA(reinterpret_cast<PyArrayObject*>(object));
  }
  Array strided(DataType type) {
    Array result = {array(type), 0, 0};
    PyObject* tuple = ok_ ? *next_++ : nullptr;
    if (tuple == Py_None) return result;
    ok_ = ok_ && PyArg_ParseTuple(tuple, "LL", as_long_long(&result.outer_stride),
                                  as_long_long(&result.col_stride));
    return result;
  }
  // What every call begins with: centered, zero_centered_weight, eps, layout, x, x_strides.
  Problem problem() {
    Problem problem = {};
    problem.centered = flag();
    problem.zero_centered_weight = flag();
    problem.eps = number();
    problem.shape = shape();
    problem.type = peek_type(DataType::float32);
    problem.x = strided(problem.type);
    return problem;
  }
  // mean, rstd, residual
  Statistics statistics(DataType type) {
    const DataType compute = compute_type(type);
    Statistics result;
    result.mean = array(compute);
    result.rstd = array(compute);
    result.residual = array(compute);
    return result;
  }
  DataType peek_type(DataType otherwise) {
    DataType found = otherwise;
    if (ok_ && PyArray_Check(*next_) &&
        !data_type(reinterpret_cast<PyArrayObject*>(*next_), &found)) {
      PyErr_Format(PyExc_TypeError, "the kernels do not support arrays of this type: %R", *next_);
      ok_ = false;
    }
    return found;
  }
  // The type of the first of `ahead` arguments that is an array.
  DataType peek_types(std::initializer_list<int> ahead, DataType otherwise) {
    for (const int offset : ahead) {
      if (!ok_ || !PyArray_Check(next_[offset])) continue;
      next_ += offset;
      const DataType found = peek_type(otherwise);
      next_ -= offset;
      return found;
    }
    return otherwise;
  }

 private:
  static long long* as_long_long(int64_t* value) {
    static_assert(sizeof(long long) == sizeof(int64_t), "strides are 64 bits");
    return reinterpret_cast<long long*>(value);
  }

  PyObject* const* next_;
  bool ok_;
};

}  // namespace

// forward(centered, zero_centered_weight, eps, layout, x, x_strides, weight, bias, y, y_strides,
//         mean, rstd, residual)
PyObject* general_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take("forward", arguments, count, 13);
  Forward job = {};
  Problem& problem = job.problem = take.problem();
  problem.parameter_type = take.peek_types({0, 1}, problem.type);
  problem.weight = take.array(problem.parameter_type);
  job.bias = take.array(problem.parameter_type);
  job.y = take.strided(problem.type);
  problem.statistics = take.statistics(problem.type);
  if (!take.ok() || !python::run(layernorm::forward, job, pool_threads())) return nullptr;
  Py_RETURN_NONE;
}

// backward(centered, zero_centered_weight, eps, layout, x, x_strides, dy, dy_strides, weight,
//          mean, rstd, residual, dx, dx_strides, dweight, dbias)
PyObject* general_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take("backward", arguments, count, 16);
  Backward job = {};
  Problem& problem = job.problem = take.problem();
  job.dy = take.strided(problem.type);
  problem.parameter_type = take.peek_types({0, 6, 7}, problem.type);
  problem.weight = take.array(problem.parameter_type);
  problem.statistics = take.statistics(problem.type);
  job.dx = take.strided(problem.type);
  job.dweight = take.array(problem.parameter_type);
  job.dbias = take.array(problem.parameter_type);
  if (!take.ok() || !python::run(layernorm::backward, job, pool_threads())) return nullptr;
  Py_RETURN_NONE;
}

// empty(shape, dtype)
PyObject* empty(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!python::has_count("empty", count, 2)) return nullptr;
  PyArray_Descr* descr = nullptr;
  if (!PyArray_DescrConverter(arguments[1], &descr)) return nullptr;
  const python::Owned owned(reinterpret_cast<PyObject*>(descr));
  PyArray_Dims shape = {nullptr, 0};
  if (!PyArray_IntpConverter(arguments[0], &shape)) return nullptr;
  OwnedArray array = new_array(descr, shape.len, shape.ptr);
  PyDimMem_FREE(shape.ptr);
  return array.release();
}

}  // namespace layernorm::numpy
