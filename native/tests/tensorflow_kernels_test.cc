// The kernels as TensorFlow makes and runs them, on a fake of the functions that they call: failures
// that the real TensorFlow does not produce in a test.
#include <initializer_list>
#include <vector>

#include "bindings/tensorflow/kernels.h"
#include "check.h"
#include "layout.h"
#include "memory.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;
namespace tf = layernorm::tensorflow;

struct FakeStatus {
  int code = tf::kOk;
};
FakeStatus* of(tf::Status* status) { return reinterpret_cast<FakeStatus*>(status); }

int32_t of_q = 6;  // the type of a quantized result: int8

// A node normalized over the last axis, or over the last and the first, without parameters.
struct FakeNode {
  int32_t axes = 1;
  int failure = tf::kOk;  // what TensorFlow was told
};
FakeNode* of(tf::KernelConstruction* node) { return reinterpret_cast<FakeNode*>(node); }

tf::CApi fake_c_api() {
  tf::CApi c_api;
  c_api.TF_NewStatus = [] {
    static FakeStatus status;
    status = {};
    return reinterpret_cast<tf::Status*>(&status);
  };
  c_api.TF_DeleteStatus = [](tf::Status*) {};
  c_api.TF_SetStatus = [](tf::Status* status, int code, const char*) { of(status)->code = code; };
  c_api.TF_GetCode = [](const tf::Status* status) {
    return of(const_cast<tf::Status*>(status))->code;
  };
  c_api.TF_OpKernelConstruction_GetAttrSize = [](tf::KernelConstruction* node, const char*,
                                                 int32_t* size, int32_t* total,
                                                 tf::Status*) { *size = *total = of(node)->axes; };
  c_api.TF_OpKernelConstruction_GetAttrInt64 = [](tf::KernelConstruction*, const char*,
                                                  int64_t* value, tf::Status*) { *value = 0; };
  c_api.TF_OpKernelConstruction_GetAttrInt64List = [](tf::KernelConstruction*, const char*,
                                                      int64_t* values, int count, tf::Status*) {
    for (int at = 0; at < count; ++at) values[at] = at == 0 ? -1 : 0;
  };
  c_api.TF_OpKernelConstruction_GetAttrBool = [](tf::KernelConstruction*, const char*,
                                                 unsigned char* value, tf::Status*) { *value = 1; };
  c_api.TF_OpKernelConstruction_GetAttrType = [](tf::KernelConstruction*, const char* name,
                                                 int32_t* value, tf::Status*) {
    *value = name[0] == 'Q' ? of_q : 1;
  };
  c_api.TF_OpKernelConstruction_Failure = [](tf::KernelConstruction* node, tf::Status* status) {
    of(node)->failure = of(status)->code;
  };
  return c_api;
}

// A call with one input, x, whose memory all outputs take.
struct FakeCall {
  std::vector<int64_t> sizes;
  int failure = tf::kOk;
  float memory[16] = {};
};
FakeCall* of(tf::KernelContext* call) { return reinterpret_cast<FakeCall*>(call); }
const FakeCall* of(const tf::Tensor* x) { return reinterpret_cast<const FakeCall*>(x); }

void add_calls(tf::CApi* c_api) {
  c_api->TF_GetInput = [](tf::KernelContext* call, int, tf::Tensor** x, tf::Status*) {
    *x = reinterpret_cast<tf::Tensor*>(call);
  };
  c_api->TF_DeleteTensor = [](tf::Tensor*) {};
  c_api->TF_TensorType = [](const tf::Tensor*) { return int32_t{1}; };
  c_api->TF_NumDims = [](const tf::Tensor* x) { return static_cast<int>(of(x)->sizes.size()); };
  c_api->TF_Dim = [](const tf::Tensor* x, int axis) {
    return of(x)->sizes[static_cast<size_t>(axis)];
  };
  c_api->TF_TensorData = [](const tf::Tensor* x) {
    return static_cast<void*>(const_cast<FakeCall*>(of(x))->memory);
  };
  c_api->TF_ForwardInputOrAllocateOutput = [](tf::KernelContext* call, const int*, int, int,
                                              const int64_t*, int, int* forwarded, tf::Status*) {
    *forwarded = 0;
    return reinterpret_cast<tf::Tensor*>(call);
  };
  c_api->TF_AllocateOutput = [](tf::KernelContext* call, int, int32_t, const int64_t*, int, size_t,
                                tf::Status*) {
    has_memory = false;  // for what the kernel itself allocates after its outputs
    return reinterpret_cast<tf::Tensor*>(call);
  };
  c_api->TF_OpKernelContext_Failure = [](tf::KernelContext* call, tf::Status* status) {
    of(call)->failure = of(status)->code;
  };
}

void* create(FakeNode* node) {
  return tf::create_kernel(reinterpret_cast<tf::KernelConstruction*>(node));
}

void test_a_kernel_is_made() {
  for (const auto create_kernel :
       {tf::create_kernel, tf::create_gated_kernel, tf::create_quantized_kernel}) {
    FakeNode node;
    void* kernel = create_kernel(reinterpret_cast<tf::KernelConstruction*>(&node));
    CHECK(kernel && node.failure == tf::kOk, "no kernel, failure %d", node.failure);
    tf::delete_kernel(kernel);
  }
}

void test_a_kernel_without_memory_is_a_failure() {
  FakeNode node;
  has_memory = false;
  void* kernel = create(&node);
  has_memory = true;
  CHECK(!kernel && node.failure == tf::kResourceExhausted, "failure %d", node.failure);
}

void test_a_quantized_kernel_needs_a_type_of_8_bits() {
  FakeNode node;
  of_q = 1;
  const void* kernel =
      tf::create_quantized_kernel(reinterpret_cast<tf::KernelConstruction*>(&node));
  of_q = 6;
  CHECK(!kernel && node.failure == tf::kInvalidArgument, "failure %d", node.failure);
}

void test_more_axes_than_the_kernels_know_are_a_failure() {
  for (const int32_t axes : {0, static_cast<int32_t>(kMostAxes) + 1}) {
    FakeNode node;
    node.axes = axes;
    CHECK(!create(&node) && node.failure == tf::kInvalidArgument, "%d axes: failure %d",
          static_cast<int>(axes), node.failure);
  }
}

// TensorFlow aborts when it is asked for an output with so many elements.
void test_rows_beyond_number_are_a_failure() {
  FakeNode node;
  void* kernel = create(&node);
  FakeCall call;
  call.sizes = {int64_t{1} << 62, 0};
  tf::compute_norm(kernel, reinterpret_cast<tf::KernelContext*>(&call));
  CHECK(call.failure == tf::kInvalidArgument, "failure %d", call.failure);
  tf::delete_kernel(kernel);
}

// Normalized axes with another one between them take a copy.
void test_a_copy_without_memory_is_a_failure() {
  FakeNode node;
  node.axes = 2;
  void* kernel = create(&node);
  FakeCall call;
  call.sizes = {2, 3, 2};
  tf::compute_norm(kernel, reinterpret_cast<tf::KernelContext*>(&call));
  has_memory = true;
  CHECK(call.failure == tf::kResourceExhausted, "failure %d", call.failure);
  tf::delete_kernel(kernel);
}

}  // namespace

int main() {
  tf::c_api = fake_c_api();
  add_calls(&tf::c_api);
  test_a_kernel_is_made();
  test_a_kernel_without_memory_is_a_failure();
  test_a_quantized_kernel_needs_a_type_of_8_bits();
  test_more_axes_than_the_kernels_know_are_a_failure();
  test_rows_beyond_number_are_a_failure();
  test_a_copy_without_memory_is_a_failure();
  return finish();
}
