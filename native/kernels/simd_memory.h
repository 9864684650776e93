// Loads and stores of whole vectors and of their first lanes. A part of simd.h.
#pragma once

// lanes<double> elements of the compute type, as doubles. With intrinsics, because GCC 12 drops the
// rounding of double(float(v)) written with vector types.
inline DoubleVector load_doubles(const float* from) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(from));
#elif defined(__SSE2__)
  return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadu_si64(from)));
#elif defined(__aarch64__)
  return vcvt_f64_f32(vld1_f32(from));
#else
  return DoubleVector{from[0], from[1]};
#endif
}
inline DoubleVector load_doubles(const double* from) {
  DoubleVector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline DoubleVector load_doubles(const bfloat16* from) {
#if defined(__AVX512F__)
  const __m256i bits =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
#elif defined(__AVX2__)
  const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(bits, 16)));
#else
  return DoubleVector{to_compute(from[0]), to_compute(from[1])};
#endif
}
inline DoubleVector load_doubles(const float16* from) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  return DoubleVector{to_compute(from[0]), to_compute(from[1])};
#endif
}
inline void store_doubles(float* to, DoubleVector v) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(to, _mm512_cvtpd_ps(v));
#elif defined(__AVX2__)
  _mm_storeu_ps(to, _mm256_cvtpd_ps(v));
#elif defined(__SSE2__)
  _mm_storeu_si64(to, _mm_castps_si128(_mm_cvtpd_ps(v)));
#elif defined(__aarch64__)
  vst1_f32(to, vcvt_f32_f64(v));
#else
  for (int64_t lane = 0; lane < lanes<double>; ++lane) to[lane] = static_cast<float>(v[lane]);
#endif
}
inline void store_doubles(double* to, DoubleVector v) { std::memcpy(to, &v, sizeof(v)); }

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
  for (int lane = 0; lane < lanes<float>; ++lane) v[lane] = to_compute(from[lane]);
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
  for (int lane = 0; lane < lanes<float>; ++lane) v[lane] = to_compute(from[lane]);
  return v;
#endif
}

// A vector converted to the stored type.
template <class Stored>
struct StoredVector {
  typedef uint8_t type
      __attribute__((vector_size(kVectorBytes * sizeof(Stored) / sizeof(Compute<Stored>))));
};

inline StoredVector<float>::type to_stored(FloatVector v, float) {
  return reinterpret_cast<StoredVector<float>::type>(v);
}
inline StoredVector<double>::type to_stored(DoubleVector v, double) {
  return reinterpret_cast<StoredVector<double>::type>(v);
}
inline StoredVector<bfloat16>::type to_stored(FloatVector v, bfloat16) {
#if defined(__AVX512F__)
  // Integer rounding, not vcvtneps2bf16: that flushes subnormals.
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x00400000));
  return reinterpret_cast<StoredVector<bfloat16>::type>(
      _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
#elif defined(__AVX2__)
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256i chosen = _mm256_castps_si256(
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), is_nan));
  const __m256i high = _mm256_srli_epi32(chosen, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  return reinterpret_cast<StoredVector<bfloat16>::type>(_mm256_castsi256_si128(packed));
#else
  bfloat16 out[lanes<float>];
  for (int lane = 0; lane < lanes<float>; ++lane) out[lane] = to_bfloat16(v[lane]);
  StoredVector<bfloat16>::type result;
  std::memcpy(&result, out, sizeof(result));
  return result;
#endif
}
inline StoredVector<float16>::type to_stored(FloatVector v, float16) {
#if defined(__AVX512F__)
  return reinterpret_cast<StoredVector<float16>::type>(
      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  return reinterpret_cast<StoredVector<float16>::type>(
      _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  float16 out[lanes<float>];
  for (int lane = 0; lane < lanes<float>; ++lane) out[lane] = to_float16(v[lane]);
  StoredVector<float16>::type result;
  std::memcpy(&result, out, sizeof(result));
  return result;
#endif
}

template <class Stored>
inline void store(Stored* to, Vector<Compute<Stored>> v) {
  const auto packed = to_stored(v, Stored{});
  std::memcpy(to, &packed, sizeof(packed));
}

// The lowest byte of each integer. Compilers convert such a vector one by one.
template <class Integers>
inline auto low_bytes(Integers v) {
  constexpr size_t count = sizeof(v) / sizeof(v[0]);
  struct Bytes {
    uint8_t byte[count];
  } bytes;
#if defined(__AVX512F__)
  if constexpr (count == 16) {
    const __m128i packed = _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v));
    std::memcpy(&bytes, &packed, sizeof(bytes));
  } else {
    const __m128i packed = _mm512_cvtepi64_epi8(reinterpret_cast<__m512i>(v));
    std::memcpy(&bytes, &packed, sizeof(bytes));
  }
#elif defined(__SSE2__)
  // Each half of all integers, or all, in 128 bits; each byte in 32 or 64 of them.
  constexpr int halves = sizeof(v) / 16;
  __m128i part[2];
  std::memcpy(part, &v, sizeof(v));
  const __m128i low = sizeof(v[0]) == 8 ? _mm_set1_epi64x(0xff) : _mm_set1_epi32(0xff);
  part[0] = _mm_and_si128(part[0], low);
  part[1] = halves == 2 ? _mm_and_si128(part[1], low) : part[0];
  __m128i packed = _mm_packs_epi32(part[0], part[1]);
  if constexpr (sizeof(v[0]) == 8) packed = _mm_packs_epi32(packed, packed);
  packed = _mm_packus_epi16(packed, packed);
  std::memcpy(&bytes, &packed, sizeof(bytes));
#else
  for (size_t lane = 0; lane < count; ++lane) bytes.byte[lane] = static_cast<uint8_t>(v[lane]);
#endif
  return bytes;
}

// Stores past the cache. `to` must be aligned to the bytes stored.
template <class Stored>
inline void stream(Stored* to, Vector<Compute<Stored>> v) {
  const auto packed = to_stored(v, Stored{});
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
// Streamed stores are weakly ordered: without a fence, another thread could read old values.
inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The first `count` < lanes elements, then zeros. Memory past them is not touched.
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
  const auto packed = to_stored(v, Stored{});
#if defined(__AVX512F__)
  auto mask = static_cast<__mmask16>((1u << count) - 1u);
#if defined(__clang__)
  // Clang 22 stores 4 bytes where it knows that the mask is of one 16-bit element.
  if constexpr (sizeof(Stored) == 2) __asm__("" : "+r"(mask));
#endif
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
