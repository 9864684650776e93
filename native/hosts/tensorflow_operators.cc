#include "tensorflow_operators.h"

#include <atomic>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "huge_pages.h"
#include "subnormals.h"
#include "tensorflow_layout.h"
#include "tensorflow_shim.h"
#include "thread_pool.h"

namespace layernorm::tensorflow {
namespace {

std::atomic<int> most_threads{kMostThreads};

// The codes are those of TensorFlow's types.proto.
bool from_code(int32_t code, DataType* type) {
  switch (code) {
    case 1: *type = DataType::float32; return true;
    case 2: *type = DataType::float64; return true;
    case 14: *type = DataType::bfloat16; return true;
    case 19: *type = DataType::float16; return true;
    default: return false;
  }
}

int32_t to_code(DataType type) {
  switch (type) {
    case DataType::float64: return 2;
    case DataType::bfloat16: return 14;
    case DataType::float16: return 19;
    case DataType::float32: break;
  }
  return 1;
}

// Owns one handle, or none. The memory behind it belongs to TensorFlow.
class Held {
 public:
  Held() = default;
  explicit Held(Tensor* tensor) : tensor_(tensor) {}
  Held(Held&& other) noexcept : tensor_(std::exchange(other.tensor_, nullptr)) {}
  Held& operator=(Held&& other) noexcept {
    std::swap(tensor_, other.tensor_);
    return *this;
  }
  ~Held() {
    if (tensor_) shim.TF_DeleteTensor(tensor_);
  }

  explicit operator bool() const { return tensor_ != nullptr; }
  void* data() const { return shim.TF_TensorData(tensor_); }
  bool data_type(DataType* type) const { return from_code(shim.TF_TensorType(tensor_), type); }
  bool has_sizes(const Sizes& sizes) const {
    if (shim.TF_NumDims(tensor_) != sizes.count) return false;
    for (int axis = 0; axis < sizes.count; ++axis)
      if (shim.TF_Dim(tensor_, axis) != sizes.size[axis]) return false;
    return true;
  }
  bool sizes(Sizes* sizes) const {
    sizes->count = shim.TF_NumDims(tensor_);
    if (sizes->count > kMostAxes) return false;
    for (int axis = 0; axis < sizes->count; ++axis) sizes->size[axis] = shim.TF_Dim(tensor_, axis);
    return true;
  }

 private:
  Tensor* tensor_ = nullptr;
};

// What the attributes of a node say.
struct Definition {
  int64_t axis[kMostAxes];
  int axes;
  double eps;
  bool centered;
  bool zero_centered_weight;
  bool has_weight;
  bool has_bias;
  DataType parameter_type;  // where there is a parameter
};

void* create(KernelConstruction* construction) {
  const OwnedStatus status;
  const auto integer = [&](const char* name) {
    int64_t value = 0;
    if (status.ok()) shim.TF_OpKernelConstruction_GetAttrInt64(construction, name, &value, status);
    return value;
  };
  const auto flag = [&](const char* name) {
    unsigned char value = 0;
    if (status.ok()) shim.TF_OpKernelConstruction_GetAttrBool(construction, name, &value, status);
    return value != 0;
  };
  std::unique_ptr<Definition> made(new (std::nothrow) Definition());
  int32_t total = 0;
  shim.TF_OpKernelConstruction_GetAttrSize(construction, "axis", &made->axes, &total, status);
  if (status.ok() && (made->axes < 1 || made->axes > kMostAxes))
    shim.TF_SetStatus(status, kInvalidArgument, "layernorm: axis names no axis, or too many");
  if (status.ok())
    shim.TF_OpKernelConstruction_GetAttrInt64List(construction, "axis", made->axis, made->axes,
                                                  status);
  // An attribute of type float has 32 bits, so the 64 of eps come as an int.
  const int64_t eps_bits = integer("eps_bits");
  std::memcpy(&made->eps, &eps_bits, sizeof(made->eps));
  made->centered = flag("centered");
  made->zero_centered_weight = flag("zero_centered_weight");
  made->has_weight = integer("weights") == 1;
  made->has_bias = integer("biases") == 1;
  int32_t code = 0;
  if (status.ok()) shim.TF_OpKernelConstruction_GetAttrType(construction, "P", &code, status);
  if (status.ok() && !from_code(code, &made->parameter_type))
    shim.TF_SetStatus(status, kInvalidArgument, "layernorm: P is no type of parameters");
  if (status.ok()) return made.release();
  shim.TF_OpKernelConstruction_Failure(construction, status);
  return nullptr;
}

void remove(void* kernel) { delete static_cast<Definition*>(kernel); }

// One call: its inputs, how they are walked, and what went wrong.
class Call {
 public:
  Call(void* kernel, KernelContext* context)
      : definition_(*static_cast<const Definition*>(kernel)), context_(context) {}

  const Definition& definition() const { return definition_; }
  const Layout& layout() const { return layout_; }
  const Sizes& sizes() const { return sizes_; }
  Problem& problem() { return problem_; }
  const Problem& problem() const { return problem_; }
  bool is_empty() const { return sizes_.elements() == 0; }
  int64_t bytes() const { return sizes_.elements() * size_of(problem_.type); }

  Held input(int index) {
    Tensor* tensor = nullptr;
    shim.TF_GetInput(context_, index, &tensor, status_);
    note(tensor);
    return Held(tensor);
  }

  // False where something was wrong, of which TensorFlow has been told.
  bool take_x(const Held& x) {
    problem_.centered = definition_.centered;
    problem_.zero_centered_weight = definition_.zero_centered_weight;
    problem_.eps = definition_.eps;
    if (failed_) return false;
    if (!x.data_type(&problem_.type) || !x.sizes(&sizes_))
      return fail("x needs a type of float16, bfloat16, float32 or float64, and at most 64 axes");
    if (!layout_.find(sizes_, definition_.axis, definition_.axes))
      return fail("axis names an axis that x has not, or one twice");
    problem_.parameter_type = parameter_type();
    problem_.shape = layout_.shape();
    return true;
  }

  bool take_parameter(const char* name, const Held& parameter) {
    if (failed_) return false;
    const DataType type = problem_.parameter_type;
    if (type != problem_.type && !(size_of(problem_.type) == 2 && type == DataType::float32))
      return fail(std::string(name) + " needs the type of x, or float32 beside a 16-bit x");
    if (!parameter.has_sizes(layout_.normalized()))
      return fail(std::string(name) + " needs the sizes of x along the normalized axes");
    return true;
  }

  // y may lie where x does, if nothing else reads x after this node.
  Held output_as_x(int index, int input) {
    int forwarded = -1;
    Tensor* tensor = shim.TF_ForwardInputOrAllocateOutput(context_, &input, 1, index, sizes_.size,
                                                          sizes_.count, &forwarded, status_);
    note(tensor);
    Held result(tensor);
    if (result && forwarded < 0) ask_for_huge_pages(result.data(), bytes());
    return result;
  }
  Held output(int index, DataType type, const Sizes& sizes) {
    const auto bytes = static_cast<size_t>(sizes.elements() * size_of(type));
    Tensor* tensor = shim.TF_AllocateOutput(context_, index, to_code(type), sizes.size, sizes.count,
                                            bytes, status_);
    note(tensor);
    return Held(tensor);
  }

  bool failed() const { return failed_; }
  bool run(layernorm::Status status) {
    if (status == layernorm::Status::ok) return true;
    shim.TF_SetStatus(status_, kResourceExhausted,
                      "layernorm: out of memory: give x fewer columns, or the process more");
    return report();
  }
  bool fail(const std::string& message) {
    shim.TF_SetStatus(status_, kInvalidArgument, ("layernorm: " + message).c_str());
    return report();
  }

 private:
  // Each call of TensorFlow's overwrites the status of the one before.
  void note(const Tensor* tensor) {
    if (!failed_ && (!tensor || !status_.ok())) report();
  }
  bool report() {
    shim.TF_OpKernelContext_Failure(context_, status_);
    failed_ = true;
    return false;
  }
  DataType parameter_type() const {
    const bool any = definition_.has_weight || definition_.has_bias;
    return any ? definition_.parameter_type : problem_.type;
  }

  const Definition& definition_;
  KernelContext* context_;
  OwnedStatus status_;
  bool failed_ = false;
  Sizes sizes_;
  Layout layout_;
  Problem problem_ = {};
};

// A tensor of x's sizes as the kernels walk it: in place, or through a copy.
class Walked {
 public:
  static Walked to_read(const Call& call, const void* data, DataType type) {
    Walked result = to_write(call, const_cast<void*>(data), type);  // the kernels only read it
    if (result.copy_) call.layout().gather(data, result.copy_.get(), size_of(type));
    return result;
  }
  static Walked to_write(const Call& call, void* data, DataType type) {
    Walked result;
    result.data_ = data;
    result.type_ = type;
    if (call.layout().needs_copy()) {
      const auto bytes = static_cast<size_t>(call.sizes().elements() * size_of(type));
      result.copy_.reset(new (std::nothrow) char[bytes]);
      result.failed_ = !result.copy_;
    }
    return result;
  }
  Array array(const Call& call) const { return call.layout().array(copy_ ? copy_.get() : data_); }
  bool failed() const { return failed_; }
  void flush(const Call& call) const {
    if (copy_) call.layout().scatter(copy_.get(), data_, size_of(type_));
  }

 private:
  void* data_ = nullptr;
  DataType type_ = DataType::float32;
  std::unique_ptr<char[]> copy_;
  bool failed_ = false;
};

Threads threads() { return pool_threads(most_threads.load(std::memory_order_relaxed)); }

// The statistics are (3, rows), mean, rstd and residual, or (1, rows), rstd, without centering.
Sizes statistics_sizes(const Call& call) {
  Sizes sizes;
  sizes.count = 2;
  sizes.size[0] = call.definition().centered ? 3 : 1;
  sizes.size[1] = call.layout().rows();
  return sizes;
}

Statistics statistics_at(const Call& call, const Held& held) {
  auto* data = static_cast<char*>(held.data());
  if (!call.definition().centered) return {nullptr, data, nullptr};
  const int64_t bytes = call.layout().rows() * size_of(compute_type(call.problem().type));
  return {data, data + bytes, data + 2 * bytes};
}

// Inputs: x, weight, bias. Outputs: y, statistics.
void compute_norm(void* kernel, KernelContext* context) {
  const SubnormalsKept subnormals_kept;
  Call call(kernel, context);
  const Definition& definition = call.definition();
  Held weight, bias;
  {
    // Let go before y is made: held, x could not be written over.
    const Held x = call.input(0);
    if (!call.take_x(x)) return;
  }
  int next = 1;
  if (definition.has_weight) {
    weight = call.input(next++);
    if (!call.take_parameter("weight", weight)) return;
  }
  if (definition.has_bias) {
    bias = call.input(next++);
    if (!call.take_parameter("bias", bias)) return;
  }
  Problem& problem = call.problem();
  const Held y = call.output_as_x(0, 0);
  const Held statistics = call.output(1, compute_type(problem.type), statistics_sizes(call));
  const Held x = call.input(0);
  if (call.failed()) return;
  problem.statistics = statistics_at(call, statistics);
  if (call.is_empty()) {
    const Sizes sizes = statistics_sizes(call);
    const int64_t bytes = sizes.elements() * size_of(compute_type(problem.type));
    if (bytes > 0) std::memset(statistics.data(), 0, static_cast<size_t>(bytes));
    return;
  }
  const Walked walked_x = Walked::to_read(call, x.data(), problem.type);
  const Walked walked_y = Walked::to_write(call, y.data(), problem.type);
  if (walked_x.failed() || walked_y.failed()) {
    call.run(layernorm::Status::out_of_memory);
    return;
  }
  if (weight) problem.weight = weight.data();
  problem.x = walked_x.array(call);
  Forward job = {problem, bias ? bias.data() : nullptr, walked_y.array(call)};
  if (!call.run(forward(job, threads()))) return;
  walked_y.flush(call);
}

// Inputs: dy, x, statistics, weight. Outputs: dx, dweight, dbias.
void compute_backward(void* kernel, KernelContext* context) {
  const SubnormalsKept subnormals_kept;
  Call call(kernel, context);
  const Definition& definition = call.definition();
  const Held x = call.input(1);
  if (!call.take_x(x)) return;
  Problem& problem = call.problem();
  {
    const Held dy = call.input(0);
    DataType type;
    if (call.failed()) return;
    if (!dy.has_sizes(call.sizes()) || !dy.data_type(&type) || type != problem.type) {
      call.fail("dy needs x's sizes and type");
      return;
    }
  }
  const Held statistics = call.input(2);
  if (call.failed()) return;
  DataType statistics_type;
  if (!statistics.has_sizes(statistics_sizes(call)) || !statistics.data_type(&statistics_type) ||
      statistics_type != compute_type(problem.type)) {
    call.fail("the statistics are not those of this x");
    return;
  }
  Held weight;
  if (definition.has_weight) {
    weight = call.input(3);
    if (!call.take_parameter("weight", weight)) return;
    problem.weight = weight.data();
  }
  const Held dx = call.output_as_x(0, 0);
  Held dweight, dbias;
  int next = 1;
  const Sizes& normalized = call.layout().normalized();
  if (definition.has_weight) dweight = call.output(next++, problem.parameter_type, normalized);
  if (definition.has_bias) dbias = call.output(next++, problem.parameter_type, normalized);
  const Held dy = call.input(0);
  if (call.failed()) return;
  if (call.is_empty()) {
    const int64_t bytes = normalized.elements() * size_of(problem.parameter_type);
    for (const Held* each : {&dweight, &dbias})
      if (*each && bytes > 0) std::memset(each->data(), 0, static_cast<size_t>(bytes));
    return;
  }
  problem.statistics = statistics_at(call, statistics);
  const Walked walked_x = Walked::to_read(call, x.data(), problem.type);
  const Walked walked_dy = Walked::to_read(call, dy.data(), problem.type);
  const Walked walked_dx = Walked::to_write(call, dx.data(), problem.type);
  if (walked_x.failed() || walked_dy.failed() || walked_dx.failed()) {
    call.run(layernorm::Status::out_of_memory);
    return;
  }
  problem.x = walked_x.array(call);
  Backward job = {};
  job.problem = problem;
  job.dy = walked_dy.array(call);
  job.dx = walked_dx.array(call);
  if (dweight) job.dweight = dweight.data();
  if (dbias) job.dbias = dbias.data();
  if (!call.run(backward(job, threads()))) return;
  walked_dx.flush(call);
}

// y and dx are shaped like x, dweight like weight; the rest is not known before the axes are.
void infer_norm(ShapeContext* context, Status* status) {
  shim.TF_ShapeInferenceContextSetUnknownShape(context, status);
  ShapeHandle* shape = shim.TF_NewShapeHandle();
  shim.TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  if (shim.TF_GetCode(status) == kOk)
    shim.TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  shim.TF_DeleteShapeHandle(shape);
}

void infer_backward(ShapeContext* context, Status* status) {
  infer_norm(context, status);
  if (shim.TF_GetCode(status) != kOk || shim.TF_ShapeInferenceContextNumInputs(context) < 4) return;
  ShapeHandle* shape = shim.TF_NewShapeHandle();
  shim.TF_ShapeInferenceContextGetInput(context, 3, shape, status);
  if (shim.TF_GetCode(status) == kOk)
    shim.TF_ShapeInferenceContextSetOutput(context, 1, shape, status);
  shim.TF_DeleteShapeHandle(shape);
}

struct Operation {
  const char* name;
  ShapeFunction infer;
  Compute compute;
  std::initializer_list<const char*> inputs, outputs;
};

constexpr const char* kAttributes[] = {
    "T: {half, bfloat16, float, double}",
    "P: {half, bfloat16, float, double} = DT_FLOAT",
    "S: {float, double} = DT_FLOAT",
    "weights: int >= 0",
    "biases: int >= 0",
    "axis: list(int)",
    "eps_bits: int",
    "centered: bool",
    "zero_centered_weight: bool",
};

bool define(const Operation& operation, const OwnedStatus& status) {
  OpDefinition* definition = shim.TF_NewOpDefinitionBuilder(operation.name);
  for (const char* each : operation.inputs) shim.TF_OpDefinitionBuilderAddInput(definition, each);
  for (const char* each : operation.outputs) shim.TF_OpDefinitionBuilderAddOutput(definition, each);
  for (const char* each : kAttributes) shim.TF_OpDefinitionBuilderAddAttr(definition, each);
  shim.TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, operation.infer);
  shim.TF_RegisterOpDefinition(definition, status);
  if (!status.ok()) return false;
  KernelBuilder* kernel =
      shim.TF_NewKernelBuilder(operation.name, "CPU", create, operation.compute, remove);
  shim.TF_RegisterKernelBuilder(operation.name, kernel, status);
  return status.ok();
}

}  // namespace

const char* define_operators() {
  static std::string reason;
  // Where a graph names an operation that is not registered, TensorFlow's error repeats the name: it
  // says what to do.
  const Operation operations[] = {
      {"LayerNorm__import_layernorm_tensorflow",
       infer_norm,
       compute_norm,
       {"x: T", "weight: weights * P", "bias: biases * P"},
       {"y: T", "statistics: S"}},
      {"LayerNormBackward__import_layernorm_tensorflow",
       infer_backward,
       compute_backward,
       {"dy: T", "x: T", "statistics: S", "weight: weights * P"},
       {"dx: T", "dweight: weights * P", "dbias: biases * P"}},
  };
  for (const Operation& each : operations) {
    const OwnedStatus status;
    if (!define(each, status)) {
      reason = status.message();
      return reason.c_str();
    }
  }
  return nullptr;
}

void bound_threads(int most) {
  most_threads.store(most > 0 ? most : kMostThreads, std::memory_order_relaxed);
}

}  // namespace layernorm::tensorflow
