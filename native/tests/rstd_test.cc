// rstd of rows made to be as wrong as it can be: its error counts in all of y, and twice or more in
// dx. Random rows come near the worst once in millions; a search that changes one number at a time,
// and keeps what does not make the error smaller, comes there soon.
#include "check.h"
#include "layer.h"
#include "reference.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Of rstd, in units of the compute type's 2^-precision: half an ulp of the largest significand.
Real error_of_rstd(const Case& given, const Inputs& inputs, Outputs& outputs) {
  CHECK(run_forward(given, inputs, outputs) == Status::ok, "forward: out of memory");
  Row x(static_cast<size_t>(given.shape.cols));
  for (int64_t col = 0; col < given.shape.cols; ++col)
    x[static_cast<size_t>(col)] = inputs.x.get(0, col);
  const Real exact = normalize(x, given.centered, static_cast<Real>(given.eps)).rstd;
  const int precision = format_of(given.type).precision;
  return std::fabs(outputs.rstd.get(0, 0) - exact) / exact * power_of_two(precision);
}

Real changed(Real value, DataType type, Random& random) {
  const auto bits = static_cast<int>(random.below(format_of(type).precision - 3));
  switch (random.below(4)) {
    case 0: return value * (1 + (random.uniform() - 0.5L) * power_of_two(-bits));
    case 1: return value + random.normal() * power_of_two(-bits);
    case 2: return random.normal();
    default: return -value;
  }
}

Real largest_error_found(const Case& given, int steps) {
  Random random(given.seed + 3);
  Inputs inputs = make_inputs(given);
  Outputs outputs = make_outputs(given, inputs);
  Real most = 0;
  for (int step = 0; step < steps; ++step) {
    const int64_t col = random.below(given.shape.cols);
    const Real before = inputs.x.get(0, col);
    inputs.x.set(0, col, changed(before, given.type, random));
    const Real error = error_of_rstd(given, inputs, outputs);
    CHECK(std::isfinite(error), "rstd is not finite: %s", given.text().c_str());
    if (error < most) inputs.x.set(0, col, before);
    most = std::max(most, error);
  }
  return most;
}

void test_searched_rows(DataType type, Real bound) {
  if (type == DataType::float64 && !kCanJudgeFloat64) return;
  Real worst = 0;
  for (const bool centered : {true, false})
    for (const int64_t inner : {1, 3})
      for (const int64_t cols : {2, 3, 8, 37, 124, 600})
        for (const Values values : {Values::outlier, Values::ordinary, Values::off_zero}) {
          Case given;
          given.seed = 1000 + static_cast<uint64_t>(cols);
          given.shape = {1, cols, inner};
          given.type = given.parameter_type = type;
          given.centered = centered;
          given.has_weight = given.has_bias = false;
          given.x_values = values;
          // Short rows take little time, and come nearest to the worst.
          const Real error = largest_error_found(given, cols <= 8 ? 2000 : 2000 / every());
          worst = std::max(worst, error);
          CHECK(error <= bound, "rstd: %.3Lf * 2^-%d: %s", error, format_of(type).precision,
                given.text().c_str());
        }
  std::printf("%s: at most %.3Lf\n", format_of(type).name, worst);
}

}  // namespace

int main() {
  test_searched_rows(DataType::float32, 4);
  test_searched_rows(DataType::float64, 2.75L);
  return finish();
}
