// One number from and to its stored type. A part of simd.h.
#pragma once

inline float to_compute(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
// Round to nearest, ties to even, subnormals included; a NaN stays a (quiet) NaN.
inline bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline float to_compute(float16 value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  // Shift the fields into place, then let a multiplication by 2^112 fix the exponent's bias: it
  // is exact, for subnormals too.
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  uint32_t bits = magnitude;
  float result;
  if (magnitude >= 0x0f800000u) {
    bits |= 0x7f800000u;  // infinity or NaN
    bits |= sign;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
  }
  std::memcpy(&result, &bits, sizeof(result));
  result *= 0x1p112f;
  std::memcpy(&bits, &result, sizeof(bits));
  bits |= sign;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
#endif
}
inline float16 to_float16(float value) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u | ((bits >> 13) & 0x1ffu);
  } else if (bits >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to infinity
  } else if (bits < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the last place with 2^-24 and rounds to nearest even.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;
    std::memcpy(&half, &magnitude, sizeof(half));
    half -= 0x3f000000u;
  } else {
    half = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(half | sign)};
#endif
}
inline float to_compute(float value) { return value; }
inline double to_compute(double value) { return value; }

template <class Stored>
inline Stored to_stored(Compute<Stored> value) {
  if constexpr (std::is_same<Stored, bfloat16>::value) return to_bfloat16(value);
  if constexpr (std::is_same<Stored, float16>::value) return to_float16(value);
  if constexpr (sizeof(Stored) >= 4) return value;
}
