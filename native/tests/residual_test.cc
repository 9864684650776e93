// A forward of a sum gets the bits of an addition and a forward; a backward with dtotal those of a
// backward and an addition, but that 16-bit dx is rounded once.
#include "runtime/thread_pool.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Rounded once: two float64 in float64, all others in Real, which is exact or wide enough.
Real add(Real a, Real b, DataType type) {
  if (type == DataType::float64) return static_cast<double>(a) + static_cast<double>(b);
  return rounded(a + b, type);
}

bool same_number(Real a, Real b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <class F>
void for_each_element(const Tensor& tensor, F f) {
  for (int64_t row = 0; row < tensor.rows(); ++row)
    for (int64_t col = 0; col < tensor.cols(); ++col) f(row, col);
}

enum class Overwrites { nothing, x_first, x_second, y_first, y_second_x_first };

struct Sum {
  Case given;
  Random random;
  Tensor first, second;
  Inputs inputs;  // x: their sum
  Outputs expected;

  Sum(const Case& of_case, const Threads& threads)
      : given(of_case), random(of_case.seed + 2), inputs(make_inputs(of_case)) {
    first = Tensor(given.type, given.shape, given.x_layout, random);
    second = Tensor(given.type, given.shape, given.dy_layout, random);
    fill(first, given.x_values, random);
    fill(second, given.dy_values, random);
    inputs.x = Tensor(given.type, given.shape, given.output_layout, random);
    for_each_element(first, [&](int64_t row, int64_t col) {
      inputs.x.set(row, col, add(first.get(row, col), second.get(row, col), given.type));
    });
    expected = run(given, inputs, threads);
  }

  void check_forward(Overwrites overwrites, const Threads& threads) {
    Outputs outputs = make_outputs(given, inputs);
    Tensor sum(given.type, given.shape, given.output_layout, random);
    Tensor a = first.copy(random), b = second.copy(random);
    Tensor *x = &sum, *y = &outputs.y;
    if (overwrites == Overwrites::x_first || overwrites == Overwrites::y_second_x_first) x = &a;
    if (overwrites == Overwrites::x_second) x = &b;
    if (overwrites == Overwrites::y_first) y = &a;
    if (overwrites == Overwrites::y_second_x_first) y = &b;
    const Statistics statistics = {
        outputs.mean.data(), outputs.rstd.data(), outputs.residual.data(), {given.shape.inner}};
    const Forward job = {problem_of(given, inputs, *x, statistics),
                         given.has_bias ? inputs.bias.data() : nullptr,
                         y->array(),
                         {a.array(), b.array()}};
    CHECK(forward(job, threads) == Status::ok, "memory");
    for_each_element(*x, [&](int64_t row, int64_t col) {
      CHECK(same_number(x->get(row, col), inputs.x.get(row, col)), "%s: x is not the sum",
            given.text().c_str());
    });
    CHECK(y->same_rows(expected.y), "%s: y, overwritten %d", given.text().c_str(),
          static_cast<int>(overwrites));
    CHECK(outputs.mean.same_rows(expected.mean) && outputs.rstd.same_rows(expected.rstd) &&
              outputs.residual.same_rows(expected.residual),
          "%s: the statistics", given.text().c_str());
    if (x == &sum) CHECK(sum.gaps_are_poison(), "%s: beside x", given.text().c_str());
  }

  void check_backward(bool in_dtotal, const Threads& threads) {
    Outputs outputs = make_outputs(given, inputs);
    Tensor dtotal(given.type, given.shape, given.output_layout, random);
    // Of about the size of dx, so that no bit of either is lost in the sum.
    for_each_element(dtotal, [&](int64_t row, int64_t col) {
      const Real alone = expected.dx.get(row, col), factor = random.uniform();
      dtotal.set(row, col, std::isfinite(alone) && alone != 0 ? alone * factor : factor);
    });
    dtotal.set(0, 0, std::numeric_limits<Real>::quiet_NaN());
    const Tensor before = dtotal.copy(random);
    const Statistics statistics = {given.centered ? expected.mean.data() : nullptr,
                                   expected.rstd.data(),
                                   expected.residual.data(),
                                   {given.shape.inner}};
    const Tensor& dx = in_dtotal ? dtotal : outputs.dx;
    const Backward job = {problem_of(given, inputs, inputs.x, statistics),
                          inputs.dy.array(),
                          dx.array(),
                          outputs.dweight.data(),
                          outputs.dbias.data(),
                          dtotal.array()};
    CHECK(backward(job, threads) == Status::ok, "memory");
    CHECK(outputs.dweight.same_rows(expected.dweight) && outputs.dbias.same_rows(expected.dbias),
          "%s: dweight or dbias", given.text().c_str());
    for_each_element(dx, [&](int64_t row, int64_t col) {
      const Real alone = expected.dx.get(row, col), sum = alone + before.get(row, col);
      const Real result = dx.get(row, col);
      const bool right = size_of(given.type) > 2
                             ? same_number(result, add(alone, before.get(row, col), given.type))
                             : same_number(result, rounded(sum, given.type)) ||
                                   !std::isfinite(alone) ||
                                   std::fabs(result - sum) <=
                                       0.5001L * (ulp(result, given.type) + ulp(alone, given.type));
      CHECK(right, "%s: dx[%lld, %lld] is %Lg, not %Lg", given.text().c_str(),
            static_cast<long long>(row), static_cast<long long>(col), result, sum);
    });
  }

  void check(const Threads& threads) {
    const bool can_overwrite =
        given.x_layout != Layout::broadcast && given.dy_layout != Layout::broadcast;
    check_forward(Overwrites::nothing, threads);
    if (can_overwrite)
      for (const Overwrites each : {Overwrites::x_first, Overwrites::x_second, Overwrites::y_first,
                                    Overwrites::y_second_x_first})
        check_forward(each, threads);
    check_backward(false, threads);
    check_backward(true, threads);
  }
};

void test_every_layout_and_kind_of_values(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape :
         {Shape{9, 70, 1}, Shape{37, 5, 1}, Shape{3, 1100, 1}, Shape{2, 5, 70}, Shape{2, 17, 2}})
      for (int values = 0; values <= static_cast<int>(Values::mixed); ++values) {
        Random random(given.seed = ++seed);
        if (!is_taken(seed)) continue;
        vary_parameters(given, random);
        vary_memory(given, random);
        given.in_place = false;
        given.shape = shape;
        given.x_values = static_cast<Values>(values);
        Sum(given, kAlone).check(kAlone);
      }
  });
}

void check_large(Case given) {
  Sum sum(given, pool_threads());
  sum.check_forward(Overwrites::nothing, pool_threads());
  sum.check_forward(Overwrites::y_first, pool_threads());
  sum.check_backward(false, pool_threads());
}

// Large enough for prefetching and writes past the cache, or for threads; rows that threads share.
void test_large_arrays(uint64_t seed) {
  Case given;
  for (const Shape& shape : {Shape{3200, 515, 1}, Shape{4, 60, 7000}}) {
    given.seed = ++seed;
    given.shape = shape;
    check_large(given);
  }
  for (const DataType type : kDataTypes)
    for (const Shape& shape : {Shape{400, 515, 1}, Shape{4, 6, 7000}, Shape{2, 70000, 1}}) {
      given.seed = ++seed;
      if (!is_taken(seed)) continue;
      given.type = given.parameter_type = type;
      given.shape = shape;
      check_large(given);
    }
}

}  // namespace

int main() {
  test_every_layout_and_kind_of_values(1000419);
  set_num_threads(3);
  test_large_arrays(2000023);
  return finish();
}
