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

// Lane k of the result is the sum of the lanes of v[k], for lanes<double> vectors. Costs little
// more than the sum of one.
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
// Zeroes the lanes from `count` on: padding would hold -mean and inflate the variance.
inline FloatVector keep_first(FloatVector v, int64_t count) {
  return lane_indices_below<float>(count, v);
}
inline DoubleVector keep_first(DoubleVector v, int64_t count) {
  return lane_indices_below<double>(count, v);
}
