// Vectors of the compute type (float or double), and loads and stores that convert from and to the
// stored type. Only this file and its parts know the instruction set.
#pragma once

// For a loop over an array of vectors: unrolled early, the array stays in registers.
#if defined(__clang__)
#define LAYERNORM_UNROLL _Pragma("unroll")
#else
#define LAYERNORM_UNROLL _Pragma("GCC unroll 16")
#endif

// For functions called in a loop over a row: a real call would spill the row's values to memory.
#define LAYERNORM_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// The 16-bit stored types. float and double are both stored and compute types.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVector __attribute__((vector_size(kVectorBytes)));
typedef int32_t IntVector __attribute__((vector_size(kVectorBytes)));
typedef int64_t LongVector __attribute__((vector_size(kVectorBytes)));

template <class Compute>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = FloatVector;
  using mask = IntVector;
};
template <>
struct VectorOf<double> {
  using type = DoubleVector;
  using mask = LongVector;
};
template <class Compute>
using Vector = typename VectorOf<Compute>::type;

template <class Compute>
constexpr int64_t lanes = kVectorBytes / static_cast<int64_t>(sizeof(Compute));

template <class Stored>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class Stored>
using Compute = typename ComputeOf<Stored>::type;

inline FloatVector broadcast(float value) { return value - FloatVector{}; }
inline DoubleVector broadcast(double value) { return value - DoubleVector{}; }

#include "simd_arithmetic.h"
//
#include "simd_conversion.h"
//
#include "simd_memory.h"
//
#include "simd_packs.h"
