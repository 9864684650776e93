// Rows near the limits of the types, NaNs and infinities, and empty shapes.
#include "judge.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Short rows, one pack and a tail, several blocks of a sum; rows side by side. 13 rows: one of each
// finite kind.
constexpr Shape kShapes[] = {{13, 1, 1},   {13, 2, 1}, {13, 3, 1},  {13, 17, 1}, {13, 67, 1},
                             {13, 300, 1}, {3, 4, 13}, {1, 35, 66}, {2, 1, 13}};

// Judges cases of each shape and kind of values, as set(given, values, option, random) completes
// them.
template <class F>
void judge_all_values(uint64_t seed, F set) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : kShapes)
      for (int values = 0; values <= static_cast<int>(Values::mixed); ++values)
        for (const bool option : {false, true}) {
          Random random(given.seed = ++seed);
          if (!is_taken(seed)) continue;
          vary_parameters(given, random);
          given.shape = shape;
          set(given, static_cast<Values>(values), option, random);
          run_and_judge(given);
        }
  });
}

void test_every_kind_of_rows(uint64_t seed) {
  judge_all_values(seed, [](Case& given, Values values, bool with_eps, Random& random) {
    given.x_values = values;
    given.eps = with_eps ? 1e-5 : 0;
    given.gives_residual = random.coin();
  });
}

void test_every_kind_of_dy(uint64_t seed) {
  judge_all_values(seed, [](Case& given, Values values, bool same_x, Random&) {
    given.dy_values = values;
    given.x_values = same_x ? values : Values::ordinary;
  });
}

// Where x is scaled to a power of two near 1, eps would overflow beside it.
void test_a_tiny_eps_beside_tiny_numbers(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : kShapes) {
      given.seed = ++seed;
      given.shape = shape;
      given.x_values = Values::smallest_normals;
      given.eps = 1e-290;
      run_and_judge(given);
    }
  });
}

// dx is small by cancellation, but its roundings are not: a row's two values of xhat have one each,
// and they add up.
void test_dy_along_xhat(uint64_t seed) {
  for_each_kind([&](Case given) {
    given.has_weight = false;
    for (const Shape& shape : {Shape{400, 2, 1}, Shape{100, 33, 1}, Shape{20, 257, 1},
                               Shape{4, 1126, 1}, Shape{20, 2, 67}, Shape{40, 33, 67}}) {
      Random random(given.seed = ++seed);
      if (!is_taken(seed)) continue;
      given.shape = shape;
      Inputs inputs = make_inputs(given);
      for (int64_t row = 0; row < given.rows(); ++row) {
        const Real scale = 1 + random.uniform();
        for (int64_t col = 0; col < shape.cols; ++col) {
          const bool up = random.coin();
          inputs.x.set(row, col, up ? 1.3L : -0.7L);
          inputs.dy.set(row, col, up ? scale : -scale);
        }
      }
      run_and_judge(given, inputs);
    }
  });
}

// Sums of g, rstd and their product: each may be ordinary where another is near a limit. The first
// column's xhat is large, and so is what the slope's rounding does to its dx.
void test_x_and_dy_of_far_apart_magnitudes(uint64_t seed) {
  for_each_kind([&](Case given) {
    const Real step = std::floor(std::log2(largest(given.type)) / 8);
    for (const Shape& shape : {Shape{4, 3, 1}, Shape{3, 300, 1}, Shape{1, 9, 21}})
      for (int x_steps = -4; x_steps <= 4; x_steps += 2)
        for (int dy_steps = -5; dy_steps <= 5; ++dy_steps) {
          given.seed = ++seed;
          if (!is_taken(seed)) continue;
          given.shape = shape;
          given.eps = 0;
          Inputs inputs = make_inputs(given);
          for (int64_t row = 0; row < given.rows(); ++row)
            for (int64_t col = 0; col < shape.cols; ++col) {
              const Real x = inputs.x.get(row, col) * (col == 0 ? 64 : 1);
              inputs.x.set(row, col, x * std::exp2(x_steps * step));
              inputs.dy.set(row, col, inputs.dy.get(row, col) * std::exp2(dy_steps * step));
            }
          run_and_judge(given, inputs);
        }
  });
}

// The sums of g are near a limit, their products with rstd are not: g less its mean overflows, or
// g * xhat underflows.
void test_dy_near_a_limit(uint64_t seed) {
  for_each_kind([&](Case given) {
    const Real step = std::floor(std::log2(largest(given.type)) * 15 / 32);
    given.has_weight = false;
    given.eps = 0;
    for (const Shape& shape : {Shape{40, 3, 1}, Shape{1, 3, 41}})
      for (const bool is_large : {false, true}) {
        given.seed = ++seed;
        given.shape = shape;
        given.dy_values = Values::subnormals;
        Inputs inputs = make_inputs(given);
        for (int64_t row = 0; row < given.rows(); ++row)
          for (int64_t col = 0; col < shape.cols; ++col) {
            const Real x = is_large ? static_cast<Real>(col - 1) : inputs.x.get(row, col);
            inputs.x.set(row, col, x * std::exp2(is_large ? step : -step));
            if (is_large) inputs.dy.set(row, col, (col == 1 ? 0.8L : -0.8L) * largest(given.type));
          }
        run_and_judge(given, inputs);
      }
  });
}

// Also where the backward does not know eps, and cannot check the slope of dx.
void test_an_infinite_dy_makes_its_row_nan(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : {Shape{7, 67, 1}, Shape{2, 9, 21}})
      for (const bool knows_eps : {false, true}) {
        Random random(given.seed = ++seed);
        vary_parameters(given, random);
        given.shape = shape;
        Inputs inputs = make_inputs(given);
        const int64_t bad_row = random.below(given.rows());
        inputs.dy.set(bad_row, random.below(shape.cols), std::numeric_limits<Real>::infinity());
        Outputs got = make_outputs(given, inputs);
        run_forward(given, inputs, got);
        Case backward = given;
        if (!knows_eps) backward.eps = std::numeric_limits<double>::quiet_NaN();
        run_backward(backward, inputs, got);
        for (int64_t col = 0; col < shape.cols; ++col)
          CHECK(std::isnan(got.dx.get(bad_row, col)), "dx of row %lld is not all NaN: %s",
                static_cast<long long>(bad_row), backward.text().c_str());
      }
  });
}

// Only the row with the NaN or infinity changes.
void test_a_row_that_is_not_finite_stays_alone(uint64_t seed) {
  const Real infinity = std::numeric_limits<Real>::infinity();
  for_each_kind([&](Case given) {
    for (const Shape& shape : {Shape{7, 67, 1}, Shape{2, 9, 21}})
      for (const Real bad : {std::numeric_limits<Real>::quiet_NaN(), infinity, -infinity}) {
        Random random(given.seed = ++seed);
        vary_parameters(given, random);
        given.shape = shape;
        given.x_values = random.coin() ? Values::ordinary : Values::near_largest;
        Inputs inputs = make_inputs(given);
        const Outputs clean = run(given, inputs);
        const int64_t bad_row = random.below(given.rows());
        inputs.x.set(bad_row, random.below(shape.cols), bad);
        const Outputs got = run(given, inputs);
        for (int64_t row = 0; row < given.rows(); ++row) {
          const auto shown = static_cast<long long>(row);
          if (row != bad_row) {
            CHECK(got.y.same_row(clean.y, row, row) && got.dx.same_row(clean.dx, row, row),
                  "row %lld changed with another row: %s", shown, given.text().c_str());
            continue;
          }
          for (int64_t col = 0; col < shape.cols; ++col)
            CHECK(std::isnan(got.y.get(row, col)) && std::isnan(got.dx.get(row, col)),
                  "row %lld is not all NaN: %s", shown, given.text().c_str());
        }
      }
  });
}

// The NaNs have all low bits set: rounded to bfloat16 like numbers, they would overflow to numbers.
void test_a_nan_parameter_changes_its_column_alone(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : {Shape{5, 70, 1}, Shape{2, 40, 3}})
      for (const bool in_weight : {false, true})
        for (const bool zero_centered : {false, true})
          for (const int sign : {0x7f, 0xff}) {
            given.seed = ++seed;
            given.shape = shape;
            given.zero_centered_weight = zero_centered;
            const Inputs inputs = make_inputs(given);
            Outputs clean = make_outputs(given, inputs), got = make_outputs(given, inputs);
            run_forward(given, inputs, clean);
            Random random(seed);
            const int64_t bad = random.below(shape.cols);
            const Tensor& parameter = in_weight ? inputs.weight : inputs.bias;
            const int64_t size = size_of(given.parameter_type);
            auto* element = static_cast<unsigned char*>(parameter.data()) + bad * size;
            std::memset(element, 0xff, static_cast<size_t>(size));
            element[size - 1] = static_cast<unsigned char>(sign);
            run_forward(given, inputs, got);
            for (int64_t row = 0; row < given.rows(); ++row)
              for (int64_t col = 0; col < shape.cols; ++col)
                CHECK(col == bad ? std::isnan(got.y.get(row, col))
                                 : got.y.same_element(clean.y, row, col, row),
                      "y of row %lld, column %lld is %Lg with a NaN in column %lld of the %s: %s",
                      static_cast<long long>(row), static_cast<long long>(col), got.y.get(row, col),
                      static_cast<long long>(bad), in_weight ? "weight" : "bias",
                      given.text().c_str());
          }
  });
}

void test_no_rows_give_gradients_of_zero(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : {Shape{0, 37, 1}, Shape{0, 37, 5}}) {
      given.seed = ++seed;
      given.shape = shape;
      const Outputs outputs = run(given, make_inputs(given));
      for (int64_t col = 0; col < shape.cols; ++col)
        CHECK(outputs.dweight.get(0, col) == 0 && outputs.dbias.get(0, col) == 0,
              "a gradient of no rows is not zero: %s", given.text().c_str());
    }
  });
}

void test_no_columns_write_nothing(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : {Shape{3, 0, 1}, Shape{3, 0, 5}, Shape{0, 0, 1}}) {
      given.seed = ++seed;
      given.shape = shape;
      run(given, make_inputs(given));
    }
  });
}

}  // namespace

int main() {
  test_every_kind_of_rows(1000000);
  test_every_kind_of_dy(2010000);
  test_a_tiny_eps_beside_tiny_numbers(9000000);
  test_dy_along_xhat(7000000);
  test_x_and_dy_of_far_apart_magnitudes(8000000);
  test_dy_near_a_limit(10000000);
  test_an_infinite_dy_makes_its_row_nan(11000000);
  test_a_row_that_is_not_finite_stays_alone(3000000);
  test_a_nan_parameter_changes_its_column_alone(4000000);
  test_no_rows_give_gradients_of_zero(5000000);
  test_no_columns_write_nothing(6000000);
  print_worst();
  return finish();
}
