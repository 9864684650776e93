// Packs: the elements of one full-width load. A part of simd.h.
#pragma once

// A pack is one vector, or for bfloat16 two: the even elements and the odd ones, because splitting
// and joining them so takes one instruction each. Arrays along the columns (weight, bias, partial
// sums) are stored in the same order, the pack order.
template <class Stored>
constexpr int64_t vectors_in_pack = std::is_same<Stored, bfloat16>::value ? 2 : 1;

template <class Stored>
constexpr int64_t pack_size = vectors_in_pack<Stored> * lanes<Compute<Stored>>;

template <class Stored>
struct Pack {
  Vector<Compute<Stored>> part[vectors_in_pack<Stored>];
};

// Where column `col` is in pack order. Columns after the last whole pack stay in their own order.
template <class Stored>
inline int64_t position_in_row(int64_t col, int64_t cols) {
  constexpr int64_t size = pack_size<Stored>, parts = vectors_in_pack<Stored>;
  const int64_t within = col % size;
  if (parts == 1 || col - within + size > cols) return col;
  return col - within + within % parts * (size / parts) + within / parts;
}

// Brings the values of one pack from the columns' order into pack order.
template <class Stored>
inline void in_pack_order(Compute<Stored>* values) {
  constexpr int64_t size = pack_size<Stored>, parts = vectors_in_pack<Stored>;
  if constexpr (parts > 1) {
    Compute<Stored> before[size];
    std::memcpy(before, values, sizeof(before));
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t k = 0; k < size / parts; ++k)
        values[part * (size / parts) + k] = before[k * parts + part];
  }
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

// Loads values of the compute type that are in pack order.
template <class Stored>
inline Pack<Stored> load_ordered(const Compute<Stored>* from) {
  Pack<Stored> result;
  for (int64_t part = 0; part < vectors_in_pack<Stored>; ++part)
    result.part[part] = load(from + part * lanes<Compute<Stored>>);
  return result;
}

// Leaves the rounded bfloat16 in the upper half of each element. A NaN with its low bits set would
// overflow to a number. There is none: scaled rows write one NaN, and the parameters' are canonical.
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
