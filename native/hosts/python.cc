// The NumPy host: `layernorm._native`. Python has validated the arguments (layernorm.spec); here
// they become a Problem.
#include <cstring>
#include <initializer_list>

#include "python_arrays.h"
#include "tensorflow_python.h"
#include "thread_pool.h"
#include "torch_python.h"
#include "xla_python.h"

namespace layernorm::python {
namespace {

// ml_dtypes registers bfloat16 with NumPy when it is imported; its number is known from then on.
bool is_bfloat16(PyArray_Descr* descr) {
  static int number = -1;
  if (descr->type_num == number) return true;
  if (descr->type_num < NPY_USERDEF || PyDataType_ELSIZE(descr) != 2) return false;
  if (std::strstr(descr->typeobj->tp_name, "bfloat16") == nullptr) return false;
  number = descr->type_num;
  return true;
}

}  // namespace

bool data_type(PyArray_Descr* descr, DataType* type) {
  switch (descr->type_num) {
    case NPY_FLOAT: *type = DataType::float32; return true;
    case NPY_DOUBLE: *type = DataType::float64; return true;
    case NPY_HALF: *type = DataType::float16; return true;
    default: *type = DataType::bfloat16; return is_bfloat16(descr);
  }
}

namespace {

// The arguments of forward() and backward(), taken one by one; the first mistake is kept.
class Arguments {
 public:
  Arguments(PyObject* const* arguments, Py_ssize_t count, Py_ssize_t expected)
      : next_(arguments), ok_(count == expected) {
    if (!ok_) PyErr_Format(PyExc_TypeError, "takes %zd arguments, got %zd", expected, count);
  }
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

  PyObject* const* next_;
  bool ok_;
};

int64_t bytes_of(const Problem& problem) {
  return problem.shape.outer * problem.shape.cols * problem.shape.inner * size_of(problem.type);
}

template <class Job>
PyObject* run(const Job& job, Status (*kernels)(const Job&, const Threads&)) {
  Status status;
  {
    const WithoutGil released(bytes_of(job.problem));
    status = kernels(job, pool_threads());
  }
  if (status != Status::ok) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

// forward(centered, zero_centered_weight, eps, layout, x, x_strides, weight, bias, y, y_strides,
//         mean, rstd, residual)
PyObject* general_forward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take(arguments, count, 13);
  Forward job = {};
  Problem& problem = job.problem = take.problem();
  problem.parameter_type = take.peek_types({0, 1}, problem.type);
  problem.weight = take.array(problem.parameter_type);
  job.bias = take.array(problem.parameter_type);
  job.y = take.strided(problem.type);
  problem.statistics = take.statistics(problem.type);
  return take.ok() ? run(job, layernorm::forward) : nullptr;
}

// backward(centered, zero_centered_weight, eps, layout, x, x_strides, dy, dy_strides, weight,
//          mean, rstd, residual, dx, dx_strides, dweight, dbias)
PyObject* general_backward(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  Arguments take(arguments, count, 16);
  Backward job = {};
  Problem& problem = job.problem = take.problem();
  job.dy = take.strided(problem.type);
  problem.parameter_type = take.peek_types({0, 6, 7}, problem.type);
  problem.weight = take.array(problem.parameter_type);
  problem.statistics = take.statistics(problem.type);
  job.dx = take.strided(problem.type);
  job.dweight = take.array(problem.parameter_type);
  job.dbias = take.array(problem.parameter_type);
  return take.ok() ? run(job, layernorm::backward) : nullptr;
}

// empty(shape, dtype)
PyObject* empty(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "takes 2 arguments, got %zd", count);
  PyArray_Descr* descr = nullptr;
  if (!PyArray_DescrConverter(arguments[1], &descr)) return nullptr;
  const Owned held(reinterpret_cast<PyObject*>(descr));
  PyArray_Dims shape = {nullptr, 0};
  if (!PyArray_IntpConverter(arguments[0], &shape)) return nullptr;
  OwnedArray array = new_array(descr, shape.len, shape.ptr);
  PyDimMem_FREE(shape.ptr);
  return array.release();
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

PyObject* get_threads(PyObject*, PyObject*) {
  return PyLong_FromLong(layernorm::get_num_threads());
}

PyObject* set_threads(PyObject*, PyObject* object) {
  int overflow = 0;
  const long count = PyLong_AsLongAndOverflow(object, &overflow);
  if (count == -1 && PyErr_Occurred()) return nullptr;
  if (overflow != 0 || count < 1 || count > layernorm::kMostThreads) {
    PyErr_Format(PyExc_ValueError, "num_threads is %S, but needs 1 to %d", object,
                 layernorm::kMostThreads);
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
    {"fast_forward_with_statistics", as_method(fast_forward_with_statistics), METH_FASTCALL,
     nullptr},
    {"fast_backward", as_method(fast_backward), METH_FASTCALL, nullptr},
    {"forward", as_method(general_forward), METH_FASTCALL, nullptr},
    {"backward", as_method(general_backward), METH_FASTCALL, nullptr},
    {"empty", as_method(empty), METH_FASTCALL, nullptr},
    {"isa", isa, METH_NOARGS, "The instruction set whose kernels run."},
    {"isas", isas, METH_NOARGS, "The instruction sets that this processor runs, worst first."},
    {"get_num_threads", get_threads, METH_NOARGS, get_num_threads_doc},
    {"set_num_threads", set_threads, METH_O, set_num_threads_doc},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "_native",
    "The CPU kernels, for NumPy arrays.",
    -1,
    methods,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace
}  // namespace layernorm::python

PyMODINIT_FUNC PyInit__native() {
  import_array();
  PyObject* module = PyModule_Create(&layernorm::python::definition);
  for (PyMethodDef* methods :
       {layernorm::tensorflow::methods, layernorm::torch::methods, layernorm::xla::methods})
    if (module && PyModule_AddFunctions(module, methods) != 0) Py_CLEAR(module);
  return module;
}
