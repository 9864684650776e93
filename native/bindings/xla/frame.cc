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

bool Reader::is_quantized(const Buffer* buffer, QuantizedType* type) {
  if (buffer) switch (buffer->type) {
      case Type::s8: *type = QuantizedType::int8; return true;
      case Type::f8e4m3fn: *type = QuantizedType::float8_e4m3fn; return true;
      case Type::f8e5m2: *type = QuantizedType::float8_e5m2; return true;
      default: break;
    }
  return false;
}

void Reader::require(bool condition, const char* mistake) {
  if (!condition && !mistake_) mistake_ = mistake;
}

Order order_of(Reader* reader, const Buffer* x) {
  const auto normalized = static_cast<uint64_t>(reader->integer("axes")),
             varying = static_cast<uint64_t>(reader->integer("varying"));
  Order order;
  Axes axes;
  axes.count = x ? x->rank : 0;
  reader->require(axes.count <= kMostAxes, "the axes");
  if (reader->mistake()) return order;
  for (int64_t axis = 0; axis < axes.count; ++axis) {
    axes.normalized[axis] = normalized >> axis & 1;
    axes.varying[axis] = varying >> axis & 1;
  }
  reader->require(keep_order(axes, x->sizes, &order), "the axes");
  return order;
}

Ordered ordered(const Buffer* buffer, const Order& order) {
  Ordered result;
  result.data = data_of(buffer);
  contiguous_strides(order.count, order.sizes, result.strides);
  return result;
}

}  // namespace layernorm::xla
