// The stored types as long double, converted here bit by bit, not by the code under test.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "layer_norm.h"

namespace layernorm::test {

// 11 bits more than float64 on x86-64, 60 more on arm64.
using Real = long double;
constexpr bool kCanJudgeFloat64 = LDBL_MANT_DIG >= 64;

struct Format {
  const char* name;
  int precision;     // bits of the significand
  int min_exponent;  // of the smallest normal number
  int max_exponent;  // every finite number is below 2^max_exponent
};

inline Format format_of(DataType type) {
  switch (type) {
    case DataType::float32: return {"float32", 24, -126, 128};
    case DataType::float64: return {"float64", 53, -1022, 1024};
    case DataType::bfloat16: return {"bfloat16", 8, -126, 128};
    case DataType::float16: return {"float16", 11, -14, 16};
  }
  return {};
}

inline Real power_of_two(int exponent) { return std::ldexp(Real{1}, exponent); }

inline Real largest(DataType type) {
  const Format format = format_of(type);
  return power_of_two(format.max_exponent) - power_of_two(format.max_exponent - format.precision);
}
inline Real smallest_normal(DataType type) { return power_of_two(format_of(type).min_exponent); }
inline Real smallest(DataType type) {
  const Format format = format_of(type);
  return power_of_two(format.min_exponent + 1 - format.precision);
}

// The distance from |value| to the next number of the type, as if it had no largest one.
inline Real ulp(Real value, DataType type) {
  const Format format = format_of(type);
  int exponent = format.min_exponent;
  if (value != 0 && std::isfinite(value)) exponent = std::max(exponent, std::ilogb(value));
  return power_of_two(exponent + 1 - format.precision);
}

// To nearest, ties to even.
inline Real rounded(Real value, DataType type) {
  if (value == 0 || !std::isfinite(value)) return value;
  const Real unit = ulp(value, type);
  const Real result = std::nearbyint(value / unit) * unit;
  if (std::fabs(result) >= power_of_two(format_of(type).max_exponent))
    return std::copysign(std::numeric_limits<Real>::infinity(), value);
  return result;
}

inline uint16_t float16_bits(Real value) {
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const Real magnitude = std::fabs(rounded(value, DataType::float16));
  if (std::isnan(value)) return 0x7e00;
  if (std::isinf(magnitude)) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < power_of_two(-14))
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(magnitude * power_of_two(24)));
  const int exponent = std::ilogb(magnitude);
  const auto fraction = static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024;
  return static_cast<uint16_t>(sign | ((exponent + 15) << 10) | fraction);
}

inline Real real_from_float16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  Real value;
  if (exponent == 31)
    value = fraction == 0 ? std::numeric_limits<Real>::infinity()
                          : std::numeric_limits<Real>::quiet_NaN();
  else if (exponent == 0)
    value = std::ldexp(static_cast<Real>(fraction), -24);
  else
    value = std::ldexp(static_cast<Real>(1024 + fraction), exponent - 25);
  return bits & 0x8000 ? -value : value;
}

inline Real read(DataType type, const void* data, int64_t index) {
  const char* at = static_cast<const char*>(data) + index * size_of(type);
  if (type == DataType::float64) {
    double value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  if (type == DataType::float32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  if (type == DataType::float16) return real_from_float16(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Rounded to the type.
inline void write(DataType type, void* data, int64_t index, Real value) {
  char* at = static_cast<char*>(data) + index * size_of(type);
  if (type == DataType::float64) {
    const auto stored = static_cast<double>(value);
    std::memcpy(at, &stored, sizeof(stored));
  } else if (type == DataType::float32) {
    const auto stored = static_cast<float>(value);
    std::memcpy(at, &stored, sizeof(stored));
  } else if (type == DataType::float16) {
    const uint16_t bits = float16_bits(value);
    std::memcpy(at, &bits, sizeof(bits));
  } else {
    const auto exact = static_cast<float>(rounded(value, DataType::bfloat16));
    uint32_t wide;
    std::memcpy(&wide, &exact, sizeof(wide));
    const auto bits = static_cast<uint16_t>(wide >> 16);
    std::memcpy(at, &bits, sizeof(bits));
  }
}

}  // namespace layernorm::test
