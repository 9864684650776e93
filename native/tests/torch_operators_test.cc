// The operators as PyTorch calls them, on a fake of the functions that they call: it counts what is
// released, and can refuse what PyTorch does not.
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/torch/c_api.h"
#include "bindings/torch/operators.h"
#include "check.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;
using torch::Error;
using torch::LibraryHandle;
using torch::ListHandle;
using torch::TensorHandle;
using torch::Value;

constexpr int32_t kFloat32 = 6, kFloat64 = 7;

// Tensors, lists and libraries that have not been released.
int live = 0;
std::map<std::string, torch::Kernel> kernels;
std::string refused;  // the name of the kernel that the fake refuses

struct FakeTensor {
  FakeTensor(std::vector<int64_t> given, int32_t scalar_type)
      : sizes(std::move(given)), strides(sizes.size()), type(scalar_type) {
    int64_t elements = 1;
    for (size_t axis = sizes.size(); axis-- > 0; elements *= sizes[axis]) strides[axis] = elements;
    data.resize(static_cast<size_t>(elements));
    ++live;
  }
  ~FakeTensor() { --live; }

  std::vector<int64_t> sizes, strides;
  int32_t type;
  std::vector<double> data;  // large enough for each type
};
FakeTensor* of(TensorHandle handle) { return reinterpret_cast<FakeTensor*>(handle); }

struct FakeList {
  explicit FakeList(std::vector<Value> given) : values(std::move(given)) { ++live; }
  ~FakeList() { --live; }
  std::vector<Value> values;
};
FakeList* of(ListHandle handle) { return reinterpret_cast<FakeList*>(handle); }

Error new_library(LibraryHandle* library) {
  ++live;
  *library = reinterpret_cast<LibraryHandle>(&live);
  return 0;
}

template <class Given, class To>
Error store(Given value, To* to) {
  *to = value;
  return 0;
}

torch::CApi fake_c_api() {
  torch::CApi c_api;
  c_api.aoti_torch_device_type_cpu = [] { return 0; };
  c_api.aoti_torch_dtype_float16 = [] { return 5; };
  c_api.aoti_torch_dtype_bfloat16 = [] { return 15; };
  c_api.aoti_torch_dtype_float32 = [] { return kFloat32; };
  c_api.aoti_torch_dtype_float64 = [] { return kFloat64; };
  c_api.aoti_torch_layout_strided = [] { return 0; };
  c_api.aoti_torch_check = [](bool holds, const char*, const char*, uint32_t, const char* message) {
    if (!holds) throw std::runtime_error(message);
  };
  c_api.aoti_torch_is_defined = [](TensorHandle, bool* is) { return store(true, is); };
  c_api.aoti_torch_get_dim = [](TensorHandle tensor, int64_t* axes) {
    return store(static_cast<int64_t>(of(tensor)->sizes.size()), axes);
  };
  c_api.aoti_torch_get_sizes = [](TensorHandle tensor, int64_t** sizes) {
    return store(of(tensor)->sizes.data(), sizes);
  };
  c_api.aoti_torch_get_strides = [](TensorHandle tensor, int64_t** strides) {
    return store(of(tensor)->strides.data(), strides);
  };
  c_api.aoti_torch_get_dtype = [](TensorHandle tensor, int32_t* type) {
    return store(of(tensor)->type, type);
  };
  c_api.aoti_torch_get_layout = [](TensorHandle, int32_t* layout) { return store(0, layout); };
  c_api.aoti_torch_get_device_type = [](TensorHandle, int32_t* device) { return store(0, device); };
  c_api.aoti_torch_empty_strided = [](int64_t axes, const int64_t* sizes, const int64_t*,
                                      int32_t type, int32_t, int32_t, TensorHandle* tensor) {
    auto* made = new FakeTensor(std::vector<int64_t>(sizes, sizes + axes), type);
    return store(reinterpret_cast<TensorHandle>(made), tensor);
  };
  c_api.aoti_torch_delete_tensor_object = [](TensorHandle tensor) {
    delete of(tensor);
    return Error{0};
  };
  c_api.torch_get_const_data_ptr = [](TensorHandle tensor, const void** data) {
    return store(of(tensor)->data.data(), data);
  };
  c_api.torch_get_mutable_data_ptr = [](TensorHandle tensor, void** data) {
    return store(of(tensor)->data.data(), data);
  };
  c_api.torch_list_size = [](ListHandle list, size_t* size) {
    return store(of(list)->values.size(), size);
  };
  c_api.torch_list_get_item = [](ListHandle list, size_t at, Value* value) {
    return store(of(list)->values[at], value);
  };
  c_api.torch_delete_list = [](ListHandle list) {
    delete of(list);
    return Error{0};
  };
  c_api.torch_get_num_threads = [](uint32_t* count) { return store(1u, count); };
  c_api.aoti_torch_library_init_fragment = [](const char*, const char*, uint32_t,
                                              LibraryHandle* library) {
    return new_library(library);
  };
  c_api.aoti_torch_library_init_impl = [](const char*, const char*, const char*, uint32_t,
                                          LibraryHandle* library) { return new_library(library); };
  c_api.aoti_torch_library_def = [](LibraryHandle, const char*) { return Error{0}; };
  c_api.aoti_torch_delete_library_object = [](LibraryHandle) { return Error{--live < 0}; };
  c_api.torch_library_impl = [](LibraryHandle, const char* name, torch::Kernel kernel, uint64_t) {
    if (name == refused) return Error{1};
    kernels[name] = kernel;
    return Error{0};
  };
  return c_api;
}

Value tensor(std::vector<int64_t> sizes, int32_t type = kFloat32) {
  return reinterpret_cast<Value>(new FakeTensor(std::move(sizes), type));
}
Value list(std::vector<Value> values) {
  return reinterpret_cast<Value>(new FakeList(std::move(values)));
}
constexpr Value kAbsent = 0, kFalse = 0, kMinusOne = ~Value{0};

Value number(double value) {
  Value bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// The message of PyTorch's error; empty for none, and the stack holds the results.
std::string error_of(const char* name, std::vector<Value>& stack) {
  stack.resize(16);
  try {
    kernels.at(name)(stack.data(), 0, 0);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

void test_the_operators_are_defined() {
  CHECK(torch::define_operators() && live == 2, "%d live", live);
  CHECK(torch::override_aten() && live == 3, "%d live", live);
  CHECK(torch::restore_aten() && live == 2, "%d live", live);
}

void test_what_pytorch_refuses_leaves_nothing_behind() {
  const int before = live;
  for (const char* name : {"rms_norm_backward", "layer_norm"}) {
    refused = name;
    CHECK(!torch::define_operators() && live == before, "%s refused: %d live", name, live - before);
  }
  for (const char* name : {"native_layer_norm", "native_layer_norm_backward"}) {
    refused = name;
    for (int time = 0; time < 2; ++time)
      CHECK(!torch::override_aten() && live == before, "%s refused: %d live", name, live - before);
  }
}

void test_a_call_releases_all_but_its_results() {
  const int before = live;
  const Value x = tensor({2, 3});
  const float values[] = {1, 2, 3, -5, 0, 5};
  std::memcpy(of(reinterpret_cast<TensorHandle>(x))->data.data(), values, sizeof(values));
  std::vector<Value> stack = {x, kAbsent, kAbsent, list({kMinusOne}), number(1e-5), kFalse};
  CHECK(error_of("layer_norm", stack).empty() && live == before + 4, "%d live", live - before);
  for (int result = 0; result < 4; ++result) {
    const auto* each = reinterpret_cast<FakeTensor*>(stack[static_cast<size_t>(result)]);
    float first[3];
    std::memcpy(first, each->data.data(), sizeof(first));
    if (result == 0) CHECK(first[0] < -1 && first[1] == 0 && first[2] > 1, "y is wrong");
    delete each;
  }
}

// The axis is out of range.
void test_an_error_releases_every_argument() {
  const int before = live;
  const auto axis = [] { return list({5}); };
  std::map<std::string, std::vector<Value>> calls;
  calls["layer_norm"] = {tensor({2, 3}), kAbsent, kAbsent, axis(), number(1e-5), kFalse};
  calls["rms_norm"] = {tensor({2, 3}), kAbsent, axis(), number(1e-5), kFalse};
  calls["layer_norm_backward"] = {tensor({2, 3}), tensor({2, 3}), tensor({2, 1}), tensor({2, 1}),
                                  tensor({2, 1}), kAbsent,        kAbsent,        axis(),
                                  number(1e-5),   kFalse,         list({1, 1, 1})};
  calls["rms_norm_backward"] = {tensor({2, 3}), tensor({2, 3}), tensor({2, 1}), kAbsent,
                                axis(),         number(1e-5),   kFalse,         list({1, 1})};
  for (auto& [name, stack] : calls)
    CHECK(error_of(name.c_str(), stack) == "layernorm: axis is out of range for x",
          "%s: another error", name.c_str());
  CHECK(live == before, "%d live", live - before);
}

void test_more_axes_than_the_kernels_know_are_an_error() {
  const int before = live;
  const std::vector<int64_t> many(70, 1);
  std::vector<Value> forward = {tensor(many), list(std::vector<Value>(70, 1)), kAbsent, kAbsent,
                                number(1e-5)};
  CHECK(error_of("native_layer_norm", forward) == "layernorm: x has more than 64 axes", "x");
  std::vector<Value> backward = {tensor({1, 3}), tensor({1, 3}),    tensor(many, kFloat64),
                                 kAbsent,        list({kMinusOne}), number(1e-5),
                                 kFalse,         list({1, 0})};
  CHECK(error_of("rms_norm_backward", backward) == "layernorm: a tensor has more than 64 axes",
        "the statistics");
  CHECK(live == before, "%d live", live - before);
}

}  // namespace

int main() {
  torch::c_api = fake_c_api();
  test_the_operators_are_defined();
  test_a_call_releases_all_but_its_results();
  test_an_error_releases_every_argument();
  test_more_axes_than_the_kernels_know_are_an_error();
  test_what_pytorch_refuses_leaves_nothing_behind();
  return finish();
}
