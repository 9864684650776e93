// The activations of a gate and their derivatives: sigmoid(z) = 1 / (1 + exp(-z)), and
// silu(z) = z * sigmoid(z).
#pragma once

// For exp(-t) = 2^n * exp(r), with |r| <= log(2) / 2.
template <class C>
struct Exponential;
template <>
struct Exponential<float> {
  using Bits = IntVector;
  static constexpr float log2_of_e = 1.44269504f;
  // log(2), in two parts: n times the first is exact.
  static constexpr float ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
  static constexpr float to_integer = 0x1.8p23f;  // added, it leaves no bits after the point
  static constexpr int digits = 23;
  static constexpr int32_t bias = 127;
  static constexpr int terms = 8;     // of exp(r), the last of which is below a quarter of an ulp
  static constexpr float most = 110;  // even most * exp(-most) is 0
  static constexpr int32_t up = 64;
  static constexpr float down = 0x1p-64f;
};
template <>
struct Exponential<double> {
  using Bits = LongVector;
  static constexpr double log2_of_e = 1.4426950408889634;
  static constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double to_integer = 0x1.8p52;
  static constexpr int digits = 52;
  static constexpr int64_t bias = 1023;
  static constexpr int terms = 14;
  static constexpr double most = 760;
  static constexpr int64_t up = 128;
  static constexpr double down = 0x1p-128;
};

constexpr double kOneOverFactorial[] = {1,
                                        1,
                                        1.0 / 2,
                                        1.0 / 6,
                                        1.0 / 24,
                                        1.0 / 120,
                                        1.0 / 720,
                                        1.0 / 5040,
                                        1.0 / 40320,
                                        1.0 / 362880,
                                        1.0 / 3628800,
                                        1.0 / 39916800,
                                        1.0 / 479001600,
                                        1.0 / 6227020800};

// exp(-t) * 2^up, for t from 0 to `most`: so the smallest ones are not subnormal.
template <class C>
LAYERNORM_INLINE Vector<C> scaled_exp_of_minus(Vector<C> t) {
  using E = Exponential<C>;
  using Bits = typename E::Bits;
  const Vector<C> shifted = fma(t, broadcast(-E::log2_of_e), broadcast(E::to_integer));
  const Vector<C> n = shifted - broadcast(E::to_integer);
  Vector<C> r = fma(n, broadcast(-E::ln2_high), -t);
  r = fma(n, broadcast(-E::ln2_low), r);
  Vector<C> sum = broadcast(static_cast<C>(kOneOverFactorial[E::terms - 1]));
  LAYERNORM_UNROLL
  for (int k = E::terms - 2; k >= 0; --k)
    sum = fma(sum, r, broadcast(static_cast<C>(kOneOverFactorial[k])));
  const Bits power =
      (reinterpret_cast<Bits>(shifted) << E::digits) + ((E::bias + E::up) << E::digits);
  return sum * reinterpret_cast<Vector<C>>(power);
}

template <class C>
struct Activated {
  Vector<C> value, derivative;
};

// Of -infinity, silu is -0, its limit. Before the last multiplication, by a power of two, nothing
// is subnormal.
template <bool silu, class C>
LAYERNORM_INLINE Activated<C> activate(Vector<C> z) {
  using E = Exponential<C>;
  const Vector<C> zero = {}, one = broadcast(C{1}), most = broadcast(E::most);
  const auto negative = z < zero;
  Vector<C> size = negative ? -z : z;
  size = size > most ? most : size;
  const Vector<C> e = scaled_exp_of_minus<C>(size), down = negative ? broadcast(E::down) : one;
  const Vector<C> sum = fma(e, broadcast(E::down), one);
  const Vector<C> sigmoid = (negative ? e : one) / sum;  // * down
  if constexpr (silu) {
    const Vector<C> of_minus = (negative ? one : e * broadcast(E::down)) / sum;  // sigmoid(-z)
    const Vector<C> slope = fma(negative ? -size : size, of_minus, one);
    return {(negative ? -size : z) * sigmoid * down, sigmoid * slope * down};
  } else {
    return {sigmoid * down, e / (sum * sum) * broadcast(E::down)};
  }
}
