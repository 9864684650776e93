#define LAYERNORM_DEFINES_NUMPY_API
#include "arrays.h"

#include <atomic>
#include <cstdlib>

#include "runtime/buffer_cache.h"

namespace layernorm::numpy {
namespace {

// Vectors that do not cross cache lines are the fastest to write and read. For a small array,
// setting NumPy's handler costs more than that saves.
[[maybe_unused]] constexpr size_t kLine = 64;  // not on Windows
constexpr size_t kAlignedFrom = size_t{64} << 10;

void* allocate(void*, size_t bytes) {
  if (bytes >= kCachedFrom) return take_buffer(bytes);
#if !defined(_WIN32)
  return std::aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine);
#else
  return std::malloc(bytes);  // free() cannot take aligned memory
#endif
}
void* allocate_zeros(void*, size_t count, size_t bytes) { return std::calloc(count, bytes); }
void* reallocate(void*, void* memory, size_t bytes) { return std::realloc(memory, bytes); }
void release(void*, void* memory, size_t bytes) {
  if (memory && bytes >= kCachedFrom) return return_buffer(memory, bytes);
  std::free(memory);
}

PyDataMem_Handler handler = {
    "layernorm", 1, {nullptr, allocate, allocate_zeros, reallocate, release}};

// ml_dtypes registers bfloat16 with NumPy when it is imported, under a number that stays.
bool is_bfloat16(PyArray_Descr* descr) {
  static std::atomic<int> number{-1};
  if (descr->type_num == number.load(std::memory_order_relaxed)) return true;
  if (descr->type_num < NPY_USERDEF || PyDataType_ELSIZE(descr) != 2) return false;
  const python::Owned name(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(descr->typeobj), "__name__"));
  if (!name) PyErr_Clear();
  if (!name || !PyUnicode_Check(name.get()) ||
      PyUnicode_CompareWithASCIIString(name.get(), "bfloat16") != 0)
    return false;
  number.store(descr->type_num, std::memory_order_relaxed);
  return true;
}

PyObject* own_handler = nullptr;  // a capsule with it

}  // namespace

bool data_type(PyArray_Descr* descr, DataType* type) {
  switch (descr->type_num) {
    case NPY_FLOAT: *type = DataType::float32; return true;
#if NPY_SIZEOF_LONGDOUBLE == NPY_SIZEOF_DOUBLE
    case NPY_LONGDOUBLE:  // NumPy takes the two for equal
#endif
    case NPY_DOUBLE: *type = DataType::float64; return true;
    case NPY_HALF: *type = DataType::float16; return true;
    default: *type = DataType::bfloat16; return is_bfloat16(descr);
  }
}

OwnedArray new_array(PyArray_Descr* descr, int dimensions, const npy_intp* shape) {
  const auto bytes = static_cast<size_t>(PyArray_MultiplyList(shape, dimensions)) *
                     static_cast<size_t>(PyDataType_ELSIZE(descr));
  PyObject* before = nullptr;
  if (bytes >= kAlignedFrom && !(before = PyDataMem_SetHandler(own_handler))) return OwnedArray();
  Py_INCREF(reinterpret_cast<PyObject*>(descr));
  OwnedArray array(
      PyArray_NewFromDescr(&PyArray_Type, descr, dimensions, shape, nullptr, nullptr, 0, nullptr));
  if (before) {
    Py_XDECREF(PyDataMem_SetHandler(before));
    Py_DECREF(before);
  }
  return array;
}

bool load_c_api() {
  import_array1(false);
  own_handler = PyCapsule_New(&handler, "mem_handler", nullptr);
  return own_handler != nullptr;
}

}  // namespace layernorm::numpy
