// Random numbers that are the same on every machine.
#pragma once

#include <cstdint>

namespace layernorm::test {

// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t limit) {
    return static_cast<int64_t>(bits() % static_cast<uint64_t>(limit));
  }
  bool coin() { return below(2) == 1; }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // Nearly normal: mean 0, variance 1, within 3.5 of the mean.
  double normal() {
    return (uniform() + uniform() + uniform() + uniform() - 2) * 1.7320508075688772;
  }

 private:
  uint64_t state_;
};

}  // namespace layernorm::test
