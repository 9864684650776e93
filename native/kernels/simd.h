// Vectors of the compute type (float or double), and loads and stores that convert from and to the
// stored type. The only file that names an instruction set. Included once per instruction set,
// inside an anonymous namespace: a shared inline function would be merged across instruction sets.
#pragma once

// Before a loop over an array of vectors: unrolled early, the array becomes registers.
#if defined(__clang__)
#define LAYERNORM_UNROLL _Pragma("unroll")
#else
#define LAYERNORM_UNROLL _Pragma("GCC unroll 16")
#endif

// For what a loop over a row calls: a call of its own would keep the row's values in memory.
#define LAYERNORM_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Stored 16-bit types; float and double store themselves.
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

// a * b + c, rounded once where the processor can.
inline FloatVector fma(FloatVector a, FloatVector b, FloatVector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}
inline DoubleVector fma(DoubleVector a, DoubleVector b, DoubleVector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

// The lanes of a float vector as doubles, the first and the second half.
inline DoubleVector widen_first(FloatVector v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
#elif defined(__SSE2__)
  return _mm_cvtps_pd(v);
#else
  return DoubleVector{v[0], v[1]};
#endif
}
inline DoubleVector widen_second(FloatVector v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#elif defined(__SSE2__)
  return _mm_cvtps_pd(_mm_movehl_ps(v, v));
#else
  return DoubleVector{v[2], v[3]};
#endif
}

// As many doubles as a vector holds, from and to memory of the compute type. In the processors' own
// conversions: GCC 12 takes double(float(v)), written with vector types, for v.
inline DoubleVector load_wide(const float* from) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(from));
#elif defined(__SSE2__)
  return _mm_cvtps_pd(_mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(from))));
#elif defined(__aarch64__)
  return vcvt_f64_f32(vld1_f32(from));
#else
  return DoubleVector{from[0], from[1]};
#endif
}
inline DoubleVector load_wide(const double* from) {
  DoubleVector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline void store_narrow(float* to, DoubleVector v) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(to, _mm512_cvtpd_ps(v));
#elif defined(__AVX2__)
  _mm_storeu_ps(to, _mm256_cvtpd_ps(v));
#elif defined(__SSE2__)
  _mm_store_sd(reinterpret_cast<double*>(to), _mm_castps_pd(_mm_cvtpd_ps(v)));
#elif defined(__aarch64__)
  vst1_f32(to, vcvt_f32_f64(v));
#else
  for (int64_t lane = 0; lane < lanes<double>; ++lane) to[lane] = static_cast<float>(v[lane]);
#endif
}
inline void store_narrow(double* to, DoubleVector v) { std::memcpy(to, &v, sizeof(v)); }

inline DoubleVector square_root(DoubleVector v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_pd(v);
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(v);
#else
  for (int64_t lane = 0; lane < lanes<double>; ++lane) v[lane] = std::sqrt(v[lane]);
  return v;
#endif
}

// a, or 0 where a is negative; a NaN stays.
inline DoubleVector at_least_zero(DoubleVector a) {
  const LongVector negative = a < DoubleVector{};
  return reinterpret_cast<DoubleVector>(reinterpret_cast<LongVector>(a) & ~negative);
}

inline double sum_of_lanes(DoubleVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd(v);
#elif defined(__AVX2__)
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return half[0] + half[1];
#else
  return v[0] + v[1];
#endif
}

// Lane k of the result: the sum of the lanes of v[k]. As many vectors as each has lanes, which costs
// little more than the sum of one.
inline DoubleVector sums_of_lanes(const DoubleVector* v) {
#if defined(__AVX512F__)
  DoubleVector pairs[4];
  for (int k = 0; k < 4; ++k) {
    const __m512d a = v[2 * k], b = v[2 * k + 1];
    pairs[k] = _mm512_unpacklo_pd(a, b) + _mm512_unpackhi_pd(a, b);
  }
  // Within each half of the vector: the quarters of the first pair, then those of the second.
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  DoubleVector fours[2];
  for (int k = 0; k < 2; ++k) {
    const __m512d a = pairs[2 * k], b = pairs[2 * k + 1];
    fours[k] = _mm512_permutex2var_pd(a, low, b) + _mm512_permutex2var_pd(a, high, b);
  }
  return _mm512_shuffle_f64x2(fours[0], fours[1], 0x44) +
         _mm512_shuffle_f64x2(fours[0], fours[1], 0xee);
#elif defined(__AVX2__)
  const __m256d a = _mm256_hadd_pd(v[0], v[1]), b = _mm256_hadd_pd(v[2], v[3]);
  return _mm256_permute2f128_pd(a, b, 0x20) + _mm256_permute2f128_pd(a, b, 0x31);
#else
  return DoubleVector{v[0][0], v[1][0]} + DoubleVector{v[0][1], v[1][1]};
#endif
}

// Whether a <= b in every lane; false for a NaN.
inline bool all_at_most(DoubleVector a, DoubleVector b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ) == 0xff;
#elif defined(__AVX2__)
  return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LE_OQ)) == 0xf;
#else
  bool all = true;
  for (int64_t lane = 0; lane < lanes<double>; ++lane) all = all && a[lane] <= b[lane];
  return all;
#endif
}

// v, and 0 in the lanes where `of` is infinite or NaN.
inline FloatVector zero_unless_finite(FloatVector v, FloatVector of) {
  const IntVector finite = of - of == FloatVector{};
  return reinterpret_cast<FloatVector>(reinterpret_cast<IntVector>(v) & finite);
}
inline DoubleVector zero_unless_finite(DoubleVector v, DoubleVector of) {
  const LongVector finite = of - of == DoubleVector{};
  return reinterpret_cast<DoubleVector>(reinterpret_cast<LongVector>(v) & finite);
}

// Whether |v| is finite and not below `least` in every lane.
inline bool all_finite_from(FloatVector v, float least) {
  constexpr float most = std::numeric_limits<float>::max();
#if defined(__AVX512F__)
  const FloatVector size = _mm512_abs_ps(v);
  return (_mm512_cmp_ps_mask(size, broadcast(least), _CMP_GE_OQ) &
          _mm512_cmp_ps_mask(size, broadcast(most), _CMP_LE_OQ)) == 0xffff;
#else
  bool all = true;
  for (int64_t lane = 0; lane < lanes<float>; ++lane) {
    const float size = std::fabs(v[lane]);
    all = all & (size >= least) & (size <= most);
  }
  return all;
#endif
}
inline bool all_finite_from(DoubleVector v, double least) {
  bool all = true;
  for (int64_t lane = 0; lane < lanes<double>; ++lane) {
    const double size = std::fabs(v[lane]);
    all = all & (size >= least) & (size <= std::numeric_limits<double>::max());
  }
  return all;
}

// In the compute type, for estimates.
inline float sum_of_lanes_rounded(FloatVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float sum = 0;
  for (int lane = 0; lane < lanes<float>; ++lane) sum += v[lane];
  return sum;
#endif
}
inline double sum_of_lanes_rounded(DoubleVector v) { return sum_of_lanes(v); }

template <class C>
inline Vector<C> lane_indices_below(int64_t count, Vector<C> v) {
  using Mask = typename VectorOf<C>::mask;
  using Index = typename std::conditional<sizeof(C) == 4, int32_t, int64_t>::type;
  Mask index;
  for (int64_t lane = 0; lane < lanes<C>; ++lane) index[lane] = static_cast<Index>(lane);
  const Mask keep = index < static_cast<Index>(count);
  return reinterpret_cast<Vector<C>>(reinterpret_cast<Mask>(v) & keep);
}
// Zero in the lanes from `count` on: padding would otherwise hold -mean and inflate the variance.
inline FloatVector keep_first(FloatVector v, int64_t count) {
  return lane_indices_below<float>(count, v);
}
inline DoubleVector keep_first(DoubleVector v, int64_t count) {
  return lane_indices_below<double>(count, v);
}

inline float scalar_from(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
// Round to nearest, ties to even, subnormals included; a NaN stays a (quiet) NaN.
inline bfloat16 bfloat16_from(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline float scalar_from(float16 value) {
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
inline float16 float16_from(float value) {
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
inline float scalar_from(float value) { return value; }
inline double scalar_from(double value) { return value; }

template <class Stored>
inline Stored stored_from(Compute<Stored> value) {
  if constexpr (std::is_same<Stored, bfloat16>::value) return bfloat16_from(value);
  if constexpr (std::is_same<Stored, float16>::value) return float16_from(value);
  if constexpr (sizeof(Stored) >= 4) return value;
}

// load: a whole vector, from any address.
inline FloatVector load(const float* from) {
  FloatVector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline DoubleVector load(const double* from) {
  DoubleVector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline FloatVector load(const bfloat16* from) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
#else
  FloatVector v;
  for (int lane = 0; lane < lanes<float>; ++lane) v[lane] = scalar_from(from[lane]);
  return v;
#endif
}
inline FloatVector load(const float16* from) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  FloatVector v;
  for (int lane = 0; lane < lanes<float>; ++lane) v[lane] = scalar_from(from[lane]);
  return v;
#endif
}

// A vector in its stored form, on its way to memory.
template <class Stored>
struct Packed {
  typedef uint8_t type
      __attribute__((vector_size(kVectorBytes * sizeof(Stored) / sizeof(Compute<Stored>))));
};

inline Packed<float>::type pack(FloatVector v, float) {
  return reinterpret_cast<Packed<float>::type>(v);
}
inline Packed<double>::type pack(DoubleVector v, double) {
  return reinterpret_cast<Packed<double>::type>(v);
}
inline Packed<bfloat16>::type pack(FloatVector v, bfloat16) {
#if defined(__AVX512F__)
  // Integer rounding, not vcvtneps2bf16: that flushes subnormals.
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x00400000));
  return reinterpret_cast<Packed<bfloat16>::type>(
      _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
#elif defined(__AVX2__)
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256i kept = _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
  const __m256i high = _mm256_srli_epi32(kept, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  return reinterpret_cast<Packed<bfloat16>::type>(_mm256_castsi256_si128(packed));
#else
  bfloat16 out[lanes<float>];
  for (int lane = 0; lane < lanes<float>; ++lane) out[lane] = bfloat16_from(v[lane]);
  Packed<bfloat16>::type result;
  std::memcpy(&result, out, sizeof(result));
  return result;
#endif
}
inline Packed<float16>::type pack(FloatVector v, float16) {
#if defined(__AVX512F__)
  return reinterpret_cast<Packed<float16>::type>(
      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  return reinterpret_cast<Packed<float16>::type>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  float16 out[lanes<float>];
  for (int lane = 0; lane < lanes<float>; ++lane) out[lane] = float16_from(v[lane]);
  Packed<float16>::type result;
  std::memcpy(&result, out, sizeof(result));
  return result;
#endif
}

template <class Stored>
inline void store(Stored* to, Vector<Compute<Stored>> v) {
  const auto packed = pack(v, Stored{});
  std::memcpy(to, &packed, sizeof(packed));
}

// Past the cache, for outputs too large to be found there again; `to` is aligned to the vector.
template <class Stored>
inline void stream(Stored* to, Vector<Compute<Stored>> v) {
  const auto packed = pack(v, Stored{});
#if defined(__SSE2__)
  if constexpr (sizeof(packed) == 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<const __m128i&>(packed));
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(packed) == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<const __m256i&>(packed));
    return;
  }
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(packed) == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<const __m512i&>(packed));
    return;
  }
#endif
  std::memcpy(to, &packed, sizeof(packed));
}
// Streamed stores are weakly ordered: whoever reads next may be another thread.
inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The first `count` < lanes elements, and zeros; nothing past them is touched.
template <class Stored>
inline Vector<Compute<Stored>> load_first(const Stored* from, int64_t count) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1u);
  if constexpr (std::is_same<Stored, float>::value) return _mm512_maskz_loadu_ps(mask, from);
  if constexpr (std::is_same<Stored, double>::value)
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
  if constexpr (sizeof(Stored) == 2) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
    return load(reinterpret_cast<const Stored*>(&bits));
  }
#else
  Stored padded[lanes<Compute<Stored>>] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(Stored));
  return load(padded);
#endif
}
template <class Stored>
inline void store_first(Stored* to, Vector<Compute<Stored>> v, int64_t count) {
  const auto packed = pack(v, Stored{});
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1u);
  if constexpr (std::is_same<Stored, float>::value)
    return _mm512_mask_storeu_ps(to, mask, reinterpret_cast<__m512>(packed));
  if constexpr (std::is_same<Stored, double>::value)
    return _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask),
                                 reinterpret_cast<__m512d>(packed));
  if constexpr (sizeof(Stored) == 2)
    return _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(packed));
#else
  std::memcpy(to, &packed, static_cast<size_t>(count) * sizeof(Stored));
#endif
}

// What one full-width load brings: a vector, or for bfloat16 two, its even and its odd elements.
// Unpacking and packing them that way takes one instruction each. Rows are walked in packs, and
// what goes with a row's columns (weight, bias, partial sums) is kept in the same order:
// position_in_row says where a column went.
template <class Stored>
constexpr int64_t vectors_in_pack = std::is_same<Stored, bfloat16>::value ? 2 : 1;

template <class Stored>
constexpr int64_t pack_size = vectors_in_pack<Stored> * lanes<Compute<Stored>>;

template <class Stored>
struct Pack {
  Vector<Compute<Stored>> part[vectors_in_pack<Stored>];
};

// The packs end where the last whole one does; what follows is in its own order.
template <class Stored>
inline int64_t position_in_row(int64_t col, int64_t cols) {
  constexpr int64_t size = pack_size<Stored>, parts = vectors_in_pack<Stored>;
  const int64_t within = col % size;
  if (parts == 1 || col - within + size > cols) return col;
  return col - within + within % parts * (size / parts) + within / parts;
}

typedef uint32_t BitVector __attribute__((vector_size(kVectorBytes)));

template <class Stored>
inline Pack<Stored> load_pack(const Stored* from) {
  if constexpr (std::is_same<Stored, bfloat16>::value) {
    BitVector bits;
    std::memcpy(&bits, from, sizeof(bits));
    return {{reinterpret_cast<FloatVector>(bits << 16),
             reinterpret_cast<FloatVector>(bits & 0xffff0000u)}};
  } else {
    return {{load(from)}};
  }
}

// Values kept in the order of packs.
template <class Stored>
inline Pack<Stored> load_ordered(const Compute<Stored>* from) {
  Pack<Stored> result;
  for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
    result.part[part] = load(from + part * lanes<Compute<Stored>>);
  return result;
}

// The upper half of each element is its bfloat16. Not for NaNs whose rounding would overflow; rows
// with NaNs never come here, and those of the parameters are made canonical beforehand.
inline BitVector round_to_bfloat16(FloatVector v) {
  const BitVector bits = reinterpret_cast<BitVector>(v);
#if defined(__AVX512F__)
  const __m512i b = reinterpret_cast<__m512i>(bits);
  const __mmask16 odd = _mm512_test_epi32_mask(b, _mm512_set1_epi32(0x10000));
  const __m512i down = _mm512_add_epi32(b, _mm512_set1_epi32(0x7fff));
  return reinterpret_cast<BitVector>(
      _mm512_mask_add_epi32(down, odd, b, _mm512_set1_epi32(0x8000)));
#else
  return bits + 0x7fffu + ((bits >> 16) & 1u);
#endif
}

template <bool streamed>
inline void store_pack(bfloat16* to, const Pack<bfloat16>& values) {
  const BitVector bits =
      (round_to_bfloat16(values.part[0]) >> 16) | (round_to_bfloat16(values.part[1]) & 0xffff0000u);
  if constexpr (streamed)
    stream(reinterpret_cast<float*>(to), reinterpret_cast<FloatVector>(bits));
  else
    std::memcpy(to, &bits, sizeof(bits));
}
template <bool streamed, class Stored>
inline void store_pack(Stored* to, const Pack<Stored>& values) {
  if constexpr (streamed)
    stream(to, values.part[0]);
  else
    store(to, values.part[0]);
}
