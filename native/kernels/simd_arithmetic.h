// Arithmetic on vectors, lane by lane and across the lanes. A part of simd.h.
#pragma once

// a * b + c, rounded once where the processor can.
using std::fma;

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

inline DoubleVector first_half_as_doubles(FloatVector v) {
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
inline DoubleVector second_half_as_doubles(FloatVector v) {
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

template <class C>
using BitsOf = typename VectorOf<C>::mask;

template <class C>
LAYERNORM_INLINE BitsOf<C> bits_of(Vector<C> v) {
  return reinterpret_cast<BitsOf<C>>(v);
}

// The bits of |v|, which are ordered as the numbers are; those of a NaN are above all.
template <class C>
LAYERNORM_INLINE BitsOf<C> bits_of_magnitude(Vector<C> v) {
  using Bits = std::remove_reference_t<decltype(BitsOf<C>{}[0])>;
  return bits_of<C>(v) & std::numeric_limits<Bits>::max();
}

// The larger of two integers, lane by lane, and the largest of the lanes. For the first, compilers
// take a comparison and a masked move, slow where each maximum waits for the one before.
inline IntVector larger(IntVector a, IntVector b) {
#if defined(__AVX512F__)
  return reinterpret_cast<IntVector>(
      _mm512_max_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<IntVector>(
      _mm256_max_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return a > b ? a : b;
#endif
}
inline LongVector larger(LongVector a, LongVector b) {
#if defined(__AVX512F__)
  return reinterpret_cast<LongVector>(
      _mm512_max_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#else
  return a > b ? a : b;
#endif
}
template <class Bits>
inline auto largest_of_lanes(Bits v) {
  std::remove_reference_t<decltype(v[0])> of_lanes[sizeof(v) / sizeof(v[0])];
#if defined(__AVX512F__)
  if constexpr (sizeof(v[0]) == 4) return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(v));
#endif
  std::memcpy(of_lanes, &v, sizeof(v));
  return *std::max_element(of_lanes, of_lanes + sizeof(v) / sizeof(v[0]));
}

inline DoubleVector magnitude(DoubleVector v) {
  return reinterpret_cast<DoubleVector>(bits_of_magnitude<double>(v));
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

// Lane k of the result is sum_of_lanes(v[k]), for lanes<double> vectors. Costs little more than the
// sum of one.
inline DoubleVector sums_of_lanes(const DoubleVector* v) {
#if defined(__AVX512F__)
  const auto halves = [](__m512d a, __m512d b) {
    return _mm512_shuffle_f64x2(a, b, 0x44) + _mm512_shuffle_f64x2(a, b, 0xee);
  };
  const auto quarters = [](__m512d a, __m512d b) {
    return _mm512_shuffle_f64x2(a, b, 0x88) + _mm512_shuffle_f64x2(a, b, 0xdd);
  };
  const __m512d even = quarters(halves(v[0], v[2]), halves(v[4], v[6]));
  const __m512d odd = quarters(halves(v[1], v[3]), halves(v[5], v[7]));
  return _mm512_unpacklo_pd(even, odd) + _mm512_unpackhi_pd(even, odd);
#elif defined(__AVX2__)
  const auto halves = [](__m256d a, __m256d b) {
    return _mm256_permute2f128_pd(a, b, 0x20) + _mm256_permute2f128_pd(a, b, 0x31);
  };
  const __m256d even = halves(v[0], v[2]), odd = halves(v[1], v[3]);
  return _mm256_unpacklo_pd(even, odd) + _mm256_unpackhi_pd(even, odd);
#else
  return DoubleVector{v[0][0], v[1][0]} + DoubleVector{v[0][1], v[1][1]};
#endif
}

// The same of vectors of floats, for estimates: the sums are rounded to float.
inline float sum_of_lanes(FloatVector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#elif defined(__AVX2__)
  const __m128 fours = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pairs = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
  return pairs[0] + pairs[1];
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}
inline void store_sums_of_lanes(float* to, const FloatVector* v) {
#if defined(__AVX512F__)
  const auto halves = [](__m512 a, __m512 b) {
    return _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
  };
  const auto quarters = [](__m512 a, __m512 b) {
    return _mm512_castps_pd(_mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  const __m512d even = quarters(halves(v[0], v[2]), halves(v[4], v[6]));
  const __m512d odd = quarters(halves(v[1], v[3]), halves(v[5], v[7]));
  const __m512 pairs = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)) +
                       _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
  const __m512 sums = pairs + _mm512_permute_ps(pairs, 0xb1);
  _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm512_cvtepi64_epi32(_mm512_castps_si512(sums))));
#elif defined(__AVX2__)
  const auto halves = [](__m256 a, __m256 b) {
    return _mm256_castps_pd(_mm256_permute2f128_ps(a, b, 0x20) +
                            _mm256_permute2f128_ps(a, b, 0x31));
  };
  const __m256d even = halves(v[0], v[2]), odd = halves(v[1], v[3]);
  const __m256 pairs = _mm256_castpd_ps(_mm256_unpacklo_pd(even, odd)) +
                       _mm256_castpd_ps(_mm256_unpackhi_pd(even, odd));
  const __m256 sums = _mm256_hadd_ps(pairs, pairs);
  _mm_storeu_ps(to, _mm_movelh_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
  for (int64_t k = 0; k < lanes<double>; ++k) {
    const FloatVector pairs = v[k];
    to[k] = (pairs[0] + pairs[2]) + (pairs[1] + pairs[3]);
  }
#endif
}
inline void store_sums_of_lanes(double* to, const DoubleVector* v) {
  const DoubleVector sums = sums_of_lanes(v);
  std::memcpy(to, &sums, sizeof(sums));
}

// Lane j of v[k] becomes lane k of v[j], for lanes<double> vectors.
inline void transpose(DoubleVector* v) {
#if defined(__AVX512F__)
  __m512d pairs[8], fours[8];
  for (int k = 0; k < 8; k += 2) {
    pairs[k] = _mm512_unpacklo_pd(v[k], v[k + 1]);
    pairs[k + 1] = _mm512_unpackhi_pd(v[k], v[k + 1]);
  }
  for (int k = 0; k < 8; k += 4)
    for (int j = 0; j < 2; ++j) {
      fours[k + j] = _mm512_shuffle_f64x2(pairs[k + j], pairs[k + j + 2], 0x88);
      fours[k + j + 2] = _mm512_shuffle_f64x2(pairs[k + j], pairs[k + j + 2], 0xdd);
    }
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm512_shuffle_f64x2(fours[j], fours[j + 4], 0x88);
    v[j + 4] = _mm512_shuffle_f64x2(fours[j], fours[j + 4], 0xdd);
  }
#elif defined(__AVX2__)
  __m256d pairs[4];
  for (int k = 0; k < 4; k += 2) {
    pairs[k] = _mm256_unpacklo_pd(v[k], v[k + 1]);
    pairs[k + 1] = _mm256_unpackhi_pd(v[k], v[k + 1]);
  }
  for (int j = 0; j < 2; ++j) {
    v[j] = _mm256_permute2f128_pd(pairs[j], pairs[j + 2], 0x20);
    v[j + 2] = _mm256_permute2f128_pd(pairs[j], pairs[j + 2], 0x31);
  }
#else
  const DoubleVector first = {v[0][0], v[1][0]};
  v[1] = DoubleVector{v[0][1], v[1][1]};
  v[0] = first;
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

inline bool all_at_most(FloatVector a, FloatVector b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ) == 0xffff;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)) == 0xff;
#else
  bool all = true;
  for (int64_t lane = 0; lane < lanes<float>; ++lane) all = all && a[lane] <= b[lane];
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

// Zeroes the lanes from `count` on: padding would hold -mean and inflate the variance.
template <class V>
inline V keep_first(V v, int64_t count) {
  using C = std::remove_reference_t<decltype(v[0])>;
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << count) - 1u);
  if constexpr (sizeof(C) == sizeof(float)) return _mm512_maskz_mov_ps(mask, v);
  if constexpr (sizeof(C) == sizeof(double))
    return _mm512_maskz_mov_pd(static_cast<__mmask8>(mask), v);
#else
  using Mask = typename VectorOf<C>::mask;
  using Index = std::conditional_t<sizeof(C) == sizeof(float), int32_t, int64_t>;
  Mask index;
  for (int64_t lane = 0; lane < lanes<C>; ++lane) index[lane] = static_cast<Index>(lane);
  const Mask keep = index < static_cast<Index>(count);
  return reinterpret_cast<V>(reinterpret_cast<Mask>(v) & keep);
#endif
}
