// Exponents, and powers of two.
#pragma once

// Of 0 and of subnormal numbers -1023, one less than that of the smallest normal number.
inline int exponent_of(double v) {
  int64_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return static_cast<int>(bits >> 52 & 0x7ff) - 1023;
}
// The exponent of the nearest normal power of two. Powers beyond the range are that one.
template <class C>
inline int in_range(int exponent) {
  constexpr int most = std::numeric_limits<C>::max_exponent - 1;
  return std::clamp(exponent, 1 - most, most);
}
template <class C = double>
inline C power_of_two(int exponent) {
  const int64_t bits = static_cast<int64_t>(in_range<C>(exponent) + 1023) << 52;
  double result;
  std::memcpy(&result, &bits, sizeof(result));
  return static_cast<C>(result);
}
inline double times_power(double v, int exponent) {
  return v * power_of_two(exponent / 2) * power_of_two(exponent - exponent / 2);
}

// The exponent of each magnitude; of 0, one so low that a sum with it stays below all others.
constexpr int kExponentOfZero = -9999;
template <class C>
inline BitsOf<C> exponents_of(Vector<C> v) {
  using E = Exponential<C>;
  const BitsOf<C> bits = bits_of_magnitude<C>(v);
  return bits == 0 ? BitsOf<C>{} + kExponentOfZero : (bits >> E::digits) - E::bias;
}

// A power of two for each lane, in two factors, 2^a and 2^b, since 2^(a+b) may be beyond the type's
// range. product() gives one to each factor of a product that may be beyond it.
template <class C>
struct Scale {
  Vector<C> first, second;

  __attribute__((noinline)) Scale(const int* a, const int* b) {
    for (int64_t lane = 0; lane < lanes<C>; ++lane) {
      first[lane] = power_of_two<C>(a[lane]);
      second[lane] = power_of_two<C>(b[lane]);
    }
  }
  Vector<C> operator()(Vector<C> v) const { return v * first * second; }
  Vector<C> product(Vector<C> v, Vector<C> w) const { return (v * first) * (w * second); }
};
