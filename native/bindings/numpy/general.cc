#include "general.h"

#include <algorithm>
#include <initializer_list>

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
  // A tuple of axes.
  void mark(bool (&marked)[kMostAxes]) {
    PyObject* tuple = ok_ ? *next_++ : nullptr;
    ok_ = ok_ && PyTuple_Check(tuple);
    for (Py_ssize_t at = 0; ok_ && at < PyTuple_Size(tuple); ++at) {
      const Py_ssize_t axis = PyLong_AsSsize_t(PyTuple_GetItem(tuple, at));
      ok_ = axis >= 0 && axis < kMostAxes;
      if (ok_) marked[axis] = true;
    }
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
  // An array of x's shape, or None.
  Ordered ordered(const Order& order, DataType type, bool* fits) {
    PyObject* object = ok_ ? *next_ : nullptr;
    Ordered result;
    result.data = array(type);
    if (result.data) *fits = *fits && take_strides(object, order, &result);
    return result;
  }
  // An array of x's shape with elements of one byte.
  Ordered ordered_bytes(const Order& order, bool* fits) {
    PyObject* object = ok_ ? *next_++ : nullptr;
    Ordered result;
    if (!ok_) return result;
    if (!PyArray_Check(object) || PyArray_ITEMSIZE(reinterpret_cast<PyArrayObject*>(object)) != 1) {
      PyErr_Format(PyExc_TypeError, "expected an array of single bytes, got %R", object);
      ok_ = false;
      return result;
    }
    result.data = PyArray_DATA(reinterpret_cast<PyArrayObject*>(object));
    *fits = *fits && take_strides(object, order, &result);
    return result;
  }
  // The place of a name among the quantized types.
  QuantizedType quantized_type() {
    const long place = ok_ ? PyLong_AsLong(*next_++) : 0;
    ok_ = ok_ && !PyErr_Occurred();
    return static_cast<QuantizedType>(place);
  }
  // What every call begins with: centered, zero_centered_weight, eps, axes, varying, and x, which
  // is not taken. False where axes of x must be moved first.
  bool problem(Problem* problem, Order* order) {
    problem->centered = flag();
    problem->zero_centered_weight = flag();
    problem->eps = number();
    Axes axes;
    mark(axes.normalized);
    mark(axes.varying);
    problem->type = peek_type(DataType::float32);
    if (!ok_) return false;
    auto* x = reinterpret_cast<PyArrayObject*>(*next_);
    int64_t sizes[kMostAxes];
    axes.count = PyArray_NDIM(x);
    std::copy_n(PyArray_DIMS(x), axes.count, sizes);
    return keep_order(axes, sizes, order);
  }
  // What a forward begins with: the problem, x, weight and bias.
  Ordered forward(Forward* job, Order* order, bool* fits) {
    *fits = this->problem(&job->problem, order);
    Problem& problem = job->problem;
    const Ordered x = ordered(*order, problem.type, fits);
    problem.parameter_type = peek_types({0, 1}, problem.type);
    problem.weight = array(problem.parameter_type);
    job->bias = array(problem.parameter_type);
    return x;
  }
  // is_silu, norm_before_gate
  void activation(Gate* gate) {
    gate->activation = flag() ? Activation::silu : Activation::sigmoid;
    gate->norm_first = flag();
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
  // False where the kernels cannot read or write the array in place.
  static bool take_strides(PyObject* object, const Order& order, Ordered* result) {
    auto* array = reinterpret_cast<PyArrayObject*>(object);
    if (!PyArray_ISALIGNED(array) || !PyArray_ISNOTSWAPPED(array)) return false;
    const npy_intp bytes = PyArray_ITEMSIZE(array);
    int64_t strides[kMostAxes];
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
      strides[axis] = PyArray_STRIDE(array, axis) / bytes;
      if (strides[axis] * bytes != PyArray_STRIDE(array, axis) && PyArray_DIM(array, axis) > 1)
        return false;
    }
    order.apply(strides, result->strides);
    return order.fits(result->strides);
  }

  PyObject* const* next_;
  bool ok_;
};

}  // namespace

// forward(centered, zero_centered_weight, eps, axes, varying, x, weight, bias, y, mean, rstd,
//         residual, addend, total, gate, is_silu, norm_before_gate)
// -> False if x, y, addend, total or gate must be copied first
PyObject* general_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take("forward", arguments, count, 17);
  Forward job = {};
  Order order;
  bool fits;
  const Ordered x = take.forward(&job, &order, &fits);
  Problem& problem = job.problem;
  const Ordered y = take.ordered(order, problem.type, &fits);
  problem.statistics = take.statistics(problem.type);
  const Ordered addend = take.ordered(order, problem.type, &fits);
  const Ordered total = take.ordered(order, problem.type, &fits);
  const Ordered gate = take.ordered(order, problem.type, &fits);
  take.activation(&job.gate);
  if (!take.ok()) return nullptr;
  const bool adds = addend.data != nullptr;
  Order::Placed placed[kMostTensors] = {{&x, adds ? &job.addends[0] : &problem.x}, {&y, &job.y}};
  int tensors = 2;
  if (adds) placed[tensors++] = {&addend, &job.addends[1]};
  if (adds) placed[tensors++] = {&total, &problem.x};
  if (gate.data) placed[tensors++] = {&gate, &job.gate.values};
  if (!fits || !order.place(placed, tensors, problem)) Py_RETURN_FALSE;
  if (!python::run(layernorm::forward, job, pool_threads())) return nullptr;
  Py_RETURN_TRUE;
}

// forward_quantized(centered, zero_centered_weight, eps, axes, varying, x, weight, bias, q, type,
//                   scales, given_scale)
// -> False if x or q must be copied first
PyObject* general_forward_quantized(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take("forward_quantized", arguments, count, 12);
  Forward job = {};
  Order order;
  bool fits;
  const Ordered x = take.forward(&job, &order, &fits);
  Problem& problem = job.problem;
  const Ordered q = take.ordered_bytes(order, &fits);
  job.quantized.type = take.quantized_type();
  job.quantized.scales = take.array(compute_type(problem.type));
  job.quantized.given_scale = take.array(compute_type(problem.type));
  if (!take.ok()) return nullptr;
  const Order::Placed placed[] = {{&x, &problem.x}, {&q, &job.quantized.values}};
  if (!fits || !order.place(placed, 2, problem)) Py_RETURN_FALSE;
  if (!python::run(layernorm::forward, job, pool_threads())) return nullptr;
  Py_RETURN_TRUE;
}

// backward(centered, zero_centered_weight, eps, axes, varying, x, dy, weight, mean, rstd, residual,
//          dx, dweight, dbias, dtotal, bias, gate, dgate, is_silu, norm_before_gate)
// -> False if x, dy, dx, dtotal, gate or dgate must be copied first
PyObject* general_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take("backward", arguments, count, 20);
  Backward job = {};
  Order order;
  bool fits = take.problem(&job.problem, &order);
  Problem& problem = job.problem;
  const Ordered x = take.ordered(order, problem.type, &fits);
  const Ordered dy = take.ordered(order, problem.type, &fits);
  problem.parameter_type = take.peek_types({0, 5, 6}, problem.type);
  problem.weight = take.array(problem.parameter_type);
  problem.statistics = take.statistics(problem.type);
  const Ordered dx = take.ordered(order, problem.type, &fits);
  job.dweight = take.array(problem.parameter_type);
  job.dbias = take.array(problem.parameter_type);
  const Ordered dtotal = take.ordered(order, problem.type, &fits);
  job.bias = take.array(problem.parameter_type);
  const Ordered gate = take.ordered(order, problem.type, &fits);
  const Ordered dgate = take.ordered(order, problem.type, &fits);
  take.activation(&job.gate);
  if (!take.ok()) return nullptr;
  Order::Placed placed[kMostTensors] = {{&x, &problem.x}, {&dy, &job.dy}};
  int tensors = 2;
  if (dx.data) placed[tensors++] = {&dx, &job.dx};
  if (dx.data && dtotal.data) placed[tensors++] = {&dtotal, &job.dtotal};
  if (gate.data) placed[tensors++] = {&gate, &job.gate.values};
  if (gate.data && dgate.data) placed[tensors++] = {&dgate, &job.dgate};
  if (!fits || !order.place(placed, tensors, problem)) Py_RETURN_FALSE;
  if (!python::run(layernorm::backward, job, pool_threads())) return nullptr;
  Py_RETURN_TRUE;
}

// empty(shape, dtype)
PyObject* empty(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!python::has_count("empty", count, 2)) return nullptr;
  PyArray_Descr* descr = nullptr;
  if (!PyArray_DescrConverter(arguments[1], &descr)) return nullptr;
  const python::Owned owned(reinterpret_cast<PyObject*>(descr));
  const Py_ssize_t ndim = PyTuple_Size(arguments[0]);
  if (ndim < 0) return nullptr;
  if (ndim > NPY_MAXDIMS) return PyErr_Format(PyExc_ValueError, "an array has %zd axes", ndim);
  npy_intp shape[NPY_MAXDIMS];
  for (Py_ssize_t axis = 0; axis < ndim; ++axis) {
    shape[axis] = PyLong_AsSsize_t(PyTuple_GetItem(arguments[0], axis));
    if (shape[axis] == -1 && PyErr_Occurred()) return nullptr;
  }
  return new_array(descr, static_cast<int>(ndim), shape).release();
}

}  // namespace layernorm::numpy
