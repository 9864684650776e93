// The NumPy host: `layernorm._native`. Python has validated the arguments (layernorm.spec); here
// they become a Problem. fast_forward() is the way for plain arrays, which need no such help.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>

#include <cmath>
#include <cstring>
#include <initializer_list>

#include "../layer_norm.h"
#include "thread_pool.h"

namespace {

using layernorm::Array;
using layernorm::DataType;
using layernorm::Shape;
using layernorm::Status;

// Releasing the GIL costs about 0.1 us; below this size nobody could use it anyway.
constexpr int64_t kLongWorkBytes = 64 * 1024;

class WithoutGil {
 public:
  explicit WithoutGil(int64_t bytes)
      : state_(bytes >= kLongWorkBytes ? PyEval_SaveThread() : nullptr) {}
  ~WithoutGil() {
    if (state_) PyEval_RestoreThread(state_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// ml_dtypes registers bfloat16 with NumPy when it is imported; its number is known from then on.
bool is_bfloat16(PyArray_Descr* descr) {
  static int number = -1;
  if (descr->type_num == number) return true;
  if (descr->type_num < NPY_USERDEF || PyDataType_ELSIZE(descr) != 2) return false;
  if (std::strstr(descr->typeobj->tp_name, "bfloat16") == nullptr) return false;
  number = descr->type_num;
  return true;
}

bool data_type(PyArrayObject* array, DataType* type) {
  PyArray_Descr* descr = PyArray_DESCR(array);
  switch (descr->type_num) {
    case NPY_FLOAT: *type = DataType::float32; return true;
    case NPY_DOUBLE: *type = DataType::float64; return true;
    case NPY_HALF: *type = DataType::float16; return true;
    default: *type = DataType::bfloat16; return is_bfloat16(descr);
  }
}

bool is_plain(PyArrayObject* array) {
  return PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISALIGNED(array) && PyArray_ISNOTSWAPPED(array);
}

bool accepts_parameter(DataType type, DataType parameter_type) {
  return parameter_type == type ||
         (layernorm::size_of(type) == 2 && parameter_type == DataType::float32);
}

bool overlap(PyArrayObject* a, PyArrayObject* b) {
  const char *a_begin = PyArray_BYTES(a), *b_begin = PyArray_BYTES(b);
  return a_begin < b_begin + PyArray_NBYTES(b) && b_begin < a_begin + PyArray_NBYTES(a);
}

// A weight or bias that needs no help: absent, or (cols,), plain, of a type that x takes.
bool plain_parameter(PyObject* object, int64_t cols, DataType type, PyArrayObject* out,
                     PyArrayObject** parameter, DataType* parameter_type) {
  if (object == Py_None) return true;
  if (!PyArray_CheckExact(object)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  DataType found;
  if (!is_plain(array) || PyArray_NDIM(array) != 1 || PyArray_DIM(array, 0) != cols ||
      !data_type(array, &found) || !accepts_parameter(type, found))
    return false;
  if (out && overlap(array, out)) return false;
  *parameter = array;
  *parameter_type = found;
  return true;
}

PyObject* out_of_memory_or(Status status, PyObject* result) {
  if (status == Status::ok) return result;
  Py_XDECREF(result);
  return PyErr_NoMemory();
}

// fast_forward(x, weight, bias, axis, eps, out, centered, zero_centered_weight) -> y or None
PyObject* fast_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 8) {
    PyErr_Format(PyExc_TypeError, "fast_forward takes 8 arguments, got %zd", count);
    return nullptr;
  }
  PyObject* const x_object = arguments[0];
  PyObject* const out_object = arguments[5];
  if (!PyArray_CheckExact(x_object) || !PyLong_CheckExact(arguments[3]) ||
      !PyFloat_CheckExact(arguments[4]))
    Py_RETURN_NONE;
  auto* x = reinterpret_cast<PyArrayObject*>(x_object);
  int overflow = 0;
  const long axis = PyLong_AsLongAndOverflow(arguments[3], &overflow);
  const double eps = PyFloat_AS_DOUBLE(arguments[4]);
  DataType type;
  const int dimensions = PyArray_NDIM(x);
  if (!PyBool_Check(arguments[6]) || !PyBool_Check(arguments[7])) Py_RETURN_NONE;
  if (axis != -1 || dimensions < 1 || PyArray_SIZE(x) == 0 || !(eps >= 0) || std::isinf(eps) ||
      !is_plain(x) || !data_type(x, &type))
    Py_RETURN_NONE;
  const int64_t cols = PyArray_DIM(x, dimensions - 1);

  PyArrayObject* out = nullptr;
  if (out_object != Py_None) {
    if (!PyArray_CheckExact(out_object)) Py_RETURN_NONE;
    out = reinterpret_cast<PyArrayObject*>(out_object);
    DataType out_type;
    if (!is_plain(out) || !PyArray_ISWRITEABLE(out) || !data_type(out, &out_type) ||
        out_type != type || PyArray_NDIM(out) != dimensions ||
        !PyArray_CompareLists(PyArray_DIMS(out), PyArray_DIMS(x), dimensions) ||
        (out != x && overlap(out, x)))
      Py_RETURN_NONE;
  }
  PyArrayObject *weight = nullptr, *bias = nullptr;
  DataType weight_type = type, bias_type = type;
  if (!plain_parameter(arguments[1], cols, type, out, &weight, &weight_type) ||
      !plain_parameter(arguments[2], cols, type, out, &bias, &bias_type) ||
      (weight && bias && weight_type != bias_type))
    Py_RETURN_NONE;

  if (out) {
    Py_INCREF(out);
  } else {
    PyArray_Descr* descr = PyArray_DESCR(x);
    Py_INCREF(descr);
    out = reinterpret_cast<PyArrayObject*>(PyArray_NewFromDescr(
        &PyArray_Type, descr, dimensions, PyArray_DIMS(x), nullptr, nullptr, 0, nullptr));
    if (!out) return nullptr;
  }
  layernorm::Forward job = {};
  job.problem.shape = {PyArray_SIZE(x) / cols, cols, 1};
  job.problem.type = type;
  job.problem.parameter_type = weight ? weight_type : bias_type;
  job.problem.centered = arguments[6] == Py_True;
  job.problem.zero_centered_weight = arguments[7] == Py_True;
  job.problem.eps = eps;
  job.problem.x = {PyArray_DATA(x), cols, 1};
  job.problem.weight = weight ? PyArray_DATA(weight) : nullptr;
  job.bias = bias ? PyArray_DATA(bias) : nullptr;
  job.y = {PyArray_DATA(out), cols, 1};
  Status status;
  {
    const WithoutGil released(PyArray_NBYTES(x));
    status = layernorm::forward(job, layernorm::pool_threads());
  }
  return out_of_memory_or(status, reinterpret_cast<PyObject*>(out));
}

// The arguments of forward() and backward(), taken one by one; the first mistake is kept.
class Arguments {
 public:
  Arguments(PyObject* const* arguments, Py_ssize_t count, Py_ssize_t expected)
      : next_(arguments), ok_(count == expected) {
    if (!ok_)
      PyErr_Format(PyExc_TypeError, "takes %zd arguments, got %zd", expected, count);
  }
  bool ok() const { return ok_; }

  bool flag() { return ok_ && PyObject_IsTrue(*next_++) == 1; }
  double number() {
    const double value = ok_ ? PyFloat_AsDouble(*next_++) : 0;
    return keep(value);
  }
  Shape shape() {
    Shape shape = {};
    PyObject* tuple = ok_ ? *next_++ : nullptr;
    ok_ = ok_ && PyArg_ParseTuple(tuple, "LLL", as_long_long(&shape.outer),
                                  as_long_long(&shape.cols), as_long_long(&shape.inner));
    return shape;
  }
  // An ndarray of `type` with at least `elements`, or None where that is allowed. Its data.
  void* array(DataType type, bool optional = true) {
    if (!ok_) return nullptr;
    PyObject* object = *next_++;
    if (object == Py_None && optional) return nullptr;
    DataType found;
    if (!PyArray_Check(object) || !data_type(reinterpret_cast<PyArrayObject*>(object), &found) ||
        found != type) {
      PyErr_Format(PyExc_TypeError, "an array has another type than the kernels were promised: %R",
                   object);
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
  DataType peek_type(DataType otherwise) {
    DataType found = otherwise;
    if (ok_ && PyArray_Check(*next_) &&
        !data_type(reinterpret_cast<PyArrayObject*>(*next_), &found)) {
      PyErr_Format(PyExc_TypeError, "the kernels know no arrays of this type: %R", *next_);
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
  double keep(double value) {
    ok_ = ok_ && !PyErr_Occurred();
    return value;
  }

  PyObject* const* next_;
  bool ok_;
};

int64_t bytes_of(const layernorm::Problem& problem) {
  return problem.shape.outer * problem.shape.cols * problem.shape.inner *
         layernorm::size_of(problem.type);
}

// forward(centered, zero_centered_weight, eps, layout, x, x_strides, weight, bias, y, y_strides,
//         mean, rstd, residual)
PyObject* forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take(arguments, count, 13);
  layernorm::Forward job = {};
  layernorm::Problem& problem = job.problem;
  problem.centered = take.flag();
  problem.zero_centered_weight = take.flag();
  problem.eps = take.number();
  problem.shape = take.shape();
  problem.type = take.peek_type(DataType::float32);
  problem.x = take.strided(problem.type);
  problem.parameter_type = take.peek_types({0, 1}, problem.type);
  problem.weight = take.array(problem.parameter_type);
  job.bias = take.array(problem.parameter_type);
  job.y = take.strided(problem.type);
  const DataType compute = layernorm::compute_type(problem.type);
  problem.statistics.mean = take.array(compute);
  problem.statistics.rstd = take.array(compute);
  problem.statistics.residual = take.array(compute);
  if (!take.ok()) return nullptr;
  Status status;
  {
    const WithoutGil released(bytes_of(problem));
    status = layernorm::forward(job, layernorm::pool_threads());
  }
  return out_of_memory_or(status, Py_NewRef(Py_None));
}

// backward(centered, zero_centered_weight, eps, layout, x, x_strides, dy, dy_strides, weight,
//          mean, rstd, residual, dx, dx_strides, dweight, dbias)
PyObject* backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take(arguments, count, 16);
  layernorm::Backward job = {};
  layernorm::Problem& problem = job.problem;
  problem.centered = take.flag();
  problem.zero_centered_weight = take.flag();
  problem.eps = take.number();
  problem.shape = take.shape();
  problem.type = take.peek_type(DataType::float32);
  problem.x = take.strided(problem.type);
  job.dy = take.strided(problem.type);
  problem.parameter_type = take.peek_types({0, 6, 7}, problem.type);
  problem.weight = take.array(problem.parameter_type);
  const DataType compute = layernorm::compute_type(problem.type);
  problem.statistics.mean = take.array(compute);
  problem.statistics.rstd = take.array(compute);
  problem.statistics.residual = take.array(compute);
  job.dx = take.strided(problem.type);
  job.dweight = take.array(problem.parameter_type);
  job.dbias = take.array(problem.parameter_type);
  if (!take.ok()) return nullptr;
  Status status;
  {
    const WithoutGil released(bytes_of(problem));
    status = layernorm::backward(job, layernorm::pool_threads());
  }
  return out_of_memory_or(status, Py_NewRef(Py_None));
}

PyObject* isa(PyObject*, PyObject*) { return PyUnicode_FromString(layernorm::chosen_isa()); }

PyObject* isas(PyObject*, PyObject*) {
  const int count = layernorm::available_isa_count();
  PyObject* list = PyList_New(count);
  for (int index = 0; list && index < count; ++index) {
    PyObject* name = PyUnicode_FromString(layernorm::available_isa(index));
    if (!name) Py_CLEAR(list);
    if (list) PyList_SET_ITEM(list, index, name);
  }
  return list;
}

PyObject* get_num_threads(PyObject*, PyObject*) {
  return PyLong_FromLong(layernorm::get_num_threads());
}

PyObject* set_num_threads(PyObject*, PyObject* object) {
  const long count = PyLong_AsLong(object);
  if (count == -1 && PyErr_Occurred()) return nullptr;
  if (count < 1 || count > 1024) {
    PyErr_Format(PyExc_ValueError, "num_threads is %ld, but needs 1 to 1024", count);
    return nullptr;
  }
  layernorm::set_num_threads(static_cast<int>(count));
  Py_RETURN_NONE;
}

template <class F>
PyCFunction as_method(F* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

const char get_num_threads_doc[] =
    "get_num_threads($module, /)\n--\n\n"
    "The most threads that one call of the NumPy front end uses.\n\n"
    "By default LAYERNORM_NUM_THREADS, or the processors this process may run on.";

const char set_num_threads_doc[] =
    "set_num_threads($module, count, /)\n--\n\n"
    "Use at most `count` threads, from the next call on; the results do not depend on it.\n\n"
    "Raises: ValueError for a count outside 1 to 1024, TypeError for what is not an integer.";

PyMethodDef methods[] = {
    {"fast_forward", as_method(fast_forward), METH_FASTCALL, nullptr},
    {"forward", as_method(forward), METH_FASTCALL, nullptr},
    {"backward", as_method(backward), METH_FASTCALL, nullptr},
    {"isa", isa, METH_NOARGS, "The instruction set whose kernels run."},
    {"isas", isas, METH_NOARGS, "The instruction sets that this processor runs, worst first."},
    {"get_num_threads", get_num_threads, METH_NOARGS, get_num_threads_doc},
    {"set_num_threads", set_num_threads, METH_O, set_num_threads_doc},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "The CPU kernels, for NumPy arrays.", -1, methods,
    nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__native() {
  import_array();
  return PyModule_Create(&definition);
}
