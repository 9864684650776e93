#define NO_IMPORT_ARRAY
#include "arrays.h"

#include <cstdlib>

#include "runtime/buffer_cache.h"

namespace layernorm::python {
namespace {

// Vectors that begin and end within a cache line are the fastest to write, and to read again. For a
// small result, to ask for that takes longer.
constexpr size_t kLine = 64;
constexpr size_t kAlignedFrom = size_t{64} << 10;

void* allocate(void*, size_t bytes) {
  if (bytes >= kCachedFrom) return take_buffer(bytes);
#if !defined(_WIN32)
  return std::aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine);
#else
  return std::malloc(bytes);  // free() takes no other
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

PyObject* own_handler() {
  static PyObject* capsule = nullptr;
  if (!capsule) capsule = PyCapsule_New(&handler, "mem_handler", nullptr);
  if (!capsule) PyErr_Clear();  // NumPy's own handler serves too
  return capsule;
}

}  // namespace

OwnedArray new_array(PyArray_Descr* descr, int dimensions, const npy_intp* shape) {
  const auto bytes = static_cast<size_t>(PyArray_MultiplyList(shape, dimensions)) *
                     static_cast<size_t>(PyDataType_ELSIZE(descr));
  PyObject *before = nullptr, *own = bytes >= kAlignedFrom ? own_handler() : nullptr;
  if (own && !(before = PyDataMem_SetHandler(own))) return OwnedArray();
  Py_INCREF(descr);
  OwnedArray array(
      PyArray_NewFromDescr(&PyArray_Type, descr, dimensions, shape, nullptr, nullptr, 0, nullptr));
  if (before) {
    Py_XDECREF(PyDataMem_SetHandler(before));
    Py_DECREF(before);
  }
  return array;
}

}  // namespace layernorm::python
