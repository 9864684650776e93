// The parts of XLA's foreign function interface that the bindings use, declared from its C header
// (xla/ffi/api/c_api.h, shipped with jaxlib): the frame of a call, its buffers and attributes, and
// XLA's threads. XLA only appends to these structs, so one binary serves every version that has
// them, and XLA is not needed to build.
#pragma once

#include <cstddef>
#include <cstdint>

namespace layernorm::xla {

// The newest version whose structs were checked; they are the same from version 1 on.
constexpr int kMajor = 0;
constexpr int kMinor = 3;

enum class Type : int32_t {
  pred = 1,
  s8 = 2,
  s64 = 5,
  f16 = 10,
  f32 = 11,
  f64 = 12,
  bf16 = 16,
  f8e5m2 = 19,
  f8e4m3fn = 20
};
enum class AttributeKind : int32_t { scalar = 3 };
enum class Stage : int32_t { execute = 3 };
enum class ErrorCode : int32_t { invalid_argument = 3, resource_exhausted = 8 };

struct Context;  // of one execution
struct Error;    // null: success

struct Extension {
  enum Kind : int32_t { metadata = 1 };
  size_t struct_size;
  Kind kind;
  Extension* next;
};

struct Version {
  size_t struct_size;
  Extension* extension;
  int major, minor;
};

// XLA asks a handler for it when the handler is registered.
struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct Buffer {
  size_t struct_size;
  Extension* extension;
  Type type;
  void* data;
  int64_t rank;
  int64_t* sizes;
};

struct Text {
  const char* data;
  size_t size;
};

struct Scalar {
  Type type;
  void* value;
};

struct Buffers {
  size_t struct_size;
  Extension* extension;
  int64_t count;
  int32_t* kinds;
  Buffer** buffers;
};

// Sorted by name.
struct Attributes {
  size_t struct_size;
  Extension* extension;
  int64_t count;
  AttributeKind* kinds;
  Text** names;
  void** values;
};

struct MakeError {
  size_t struct_size;
  Extension* extension;
  const char* message;
  ErrorCode code;
};

struct DestroyError {
  size_t struct_size;
  Extension* extension;
  Error* error;
};

// Runs task(data) later, on a thread of XLA's.
struct Schedule {
  size_t struct_size;
  Extension* extension;
  Context* context;
  void (*task)(void* data);
  void* data;
};

struct CountThreads {
  size_t struct_size;
  Extension* extension;
  Context* context;
  int64_t* count;  // where to write it
};

struct Api {
  size_t struct_size;
  Extension* extension;
  Version version;
  const void* internal;
  Error* (*make_error)(MakeError*);
  void (*get_message)(void*);
  void (*destroy_error)(DestroyError*);
  void (*unused[8])();  // registration, streams, states and device memory
  Error* (*schedule)(Schedule*);
  Error* (*count_threads)(CountThreads*);
};

struct Frame {
  size_t struct_size;
  Extension* extension;
  const Api* api;
  Context* context;
  Stage stage;
  Buffers arguments, results;
  Attributes attributes;
};

using Handler = Error*(Frame*);

}  // namespace layernorm::xla
