#include "frame.h"

#include <cstring>

namespace layernorm::xla {

const void* Reader::scalar(const char* name, Type type) {
  const Attributes& attributes = frame_.attributes;
  const size_t size = std::strlen(name);
  for (int64_t index = 0; index < attributes.count; ++index) {
    const Text& given = *attributes.names[index];
    if (given.size != size || std::memcmp(given.data, name, size) != 0) continue;
    if (attributes.kinds[index] != AttributeKind::scalar) break;
    const auto* value = static_cast<const Scalar*>(attributes.values[index]);
    if (value->type == type) return value->value;
    break;
  }
  require(false, name);
  return nullptr;
}

bool Reader::flag(const char* name) {
  const void* value = scalar(name, Type::pred);
  return value && *static_cast<const bool*>(value);
}

int64_t Reader::integer(const char* name) {
  const void* value = scalar(name, Type::s64);
  return value ? *static_cast<const int64_t*>(value) : 0;
}

double Reader::number(const char* name) {
  const void* value = scalar(name, Type::f64);
  return value ? *static_cast<const double*>(value) : 0.0;
}

const Buffer* Reader::next(const Buffers& buffers, int64_t* at) {
  if (*at < buffers.count) return buffers.buffers[(*at)++];
  require(false, "the number of buffers");
  return nullptr;
}

const Buffer* Reader::argument(bool given) {
  return given ? next(frame_.arguments, &arguments_) : nullptr;
}

const Buffer* Reader::result(bool given) {
  return given ? next(frame_.results, &results_) : nullptr;
}

DataType Reader::data_type(const Buffer* buffer) {
  if (buffer) switch (buffer->type) {
      case Type::f16: return DataType::float16;
      case Type::bf16: return DataType::bfloat16;
      case Type::f32: return DataType::float32;
      case Type::f64: return DataType::float64;
      default: break;
    }
  require(false, "the type of a buffer");
  return DataType::float32;
}

void Reader::require(bool condition, const char* mistake) {
  if (!condition && !mistake_) mistake_ = mistake;
}

Array Batch::array(const Buffer* buffer) const { return contiguous_array(data_of(buffer), shape); }

int64_t Batch::parameter_stride(const Buffer* parameter) const {
  return parameter && parameter->rank == batch_axes + normalized_axes ? shape.cols : 0;
}

Batch batch_of(Reader* reader, const Buffer* x) {
  const int64_t batch = reader->integer("batch_axes"), begin = reader->integer("begin"),
                end = reader->integer("end");
  const int64_t normalized = reader->integer("normalized_axes");
  const int64_t rank = x ? x->rank : 0;
  const bool fits = 0 <= batch && batch <= begin && begin < end && end <= rank;
  reader->require(fits, "the axes");
  if (!fits) return {0, 0, 0, {0, 0, 0}};
  const auto product = [x](int64_t from, int64_t to) {
    return count_elements(to - from, x->sizes + from);
  };
  const Shape shape = {product(batch, begin), product(begin, end), product(end, rank)};
  return {product(0, batch), batch, normalized, shape};
}

void* at(void* data, DataType type, int64_t index) {
  return data ? static_cast<char*>(data) + index * size_of(type) : nullptr;
}

}  // namespace layernorm::xla
