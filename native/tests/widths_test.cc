// Contiguous rows of every width, and batches of every height.
#include <vector>

#include "judge.h"
#include "kernels/kernels.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// All up to twice the longest pack (64 elements), samples above, and around each power of two.
std::vector<int64_t> widths() {
  std::vector<int64_t> result;
  for (int64_t cols = 1; cols <= 130; ++cols) result.push_back(cols);
  for (int64_t cols = 157; cols < 1100; cols += 46) result.push_back(cols);
  for (const int64_t cols : {255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1099})
    result.push_back(cols);
  return result;
}

void test_every_width(uint64_t seed) {
  for (const int64_t cols : widths())
    for_each_kind([&](Case given) {
      Random random(given.seed = ++seed);
      if (!is_taken(seed)) return;
      vary_parameters(given, random);
      vary_wanted(given, random);
      vary_memory(given, random);
      given.shape = {1 + random.below(cols < 64 ? 40 : 9), cols, 1};
      given.x_values = random.coin() ? Values::ordinary : Values::mean_1e4;
      run_and_judge(given);
    });
}

// Rows of several parts: the last one short, and more columns than kMostParts of kPartCols hold.
void test_widths_of_several_parts(uint64_t seed) {
  const int64_t most = kMostParts * kPartCols;
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{3, kPartCols + 1}, {2, 3 * kPartCols - 1000}, {1, most + 77}})
    for_each_large_kind([&, rows = rows, cols = cols](Case given) {
      if (cols > most && given.type != DataType::float32) return;
      Random random(given.seed = ++seed);
      if (rows < 3 && !is_taken(seed)) return;
      vary_parameters(given, random);
      vary_memory(given, random);
      given.shape = {rows, cols, 1};
      given.x_values = Values::mean_1e4;
      run_and_judge(given);
    });
}

// Full batches and groups of rows, and the rows left over.
void test_every_number_of_rows(uint64_t seed) {
  for (int64_t rows = 1; rows <= 40; ++rows)
    for (const int64_t cols : {3, 37, 131})
      for_each_kind([&](Case given) {
        Random random(given.seed = ++seed);
        if (!is_taken(seed)) return;
        vary_parameters(given, random);
        vary_memory(given, random);
        given.shape = {rows, cols, 1};
        run_and_judge(given);
      });
}

// Above a thousand rows the gradients of the parameters are summed in longer blocks.
void test_many_rows(uint64_t seed) {
  for (const int64_t rows : {200, 999, 1000, 1031, 2500})
    for (const Values values : {Values::ordinary, Values::equal_rows})
      for_each_kind([&](Case given) {
        given.seed = ++seed;
        if (!is_taken(seed)) return;
        given.shape = {rows, 9, 1};
        given.x_values = values;
        given.dy_values = values == Values::ordinary ? Values::off_zero : values;
        run_and_judge(given);
      });
}

// Sums of thousands of terms of one size, whose roundings all have one sign.
void test_terms_of_one_size(uint64_t seed) {
  for_each_kind([&](Case given) {
    given.seed = ++seed;
    given.shape = {3, 20000, 1};
    Inputs inputs = make_inputs(given);
    for (int64_t row = 0; row < given.rows(); ++row) {
      const Real size = 0.1L * static_cast<Real>(row + 1);
      for (int64_t col = 0; col < given.shape.cols; ++col)
        inputs.x.set(row, col, col % 2 ? size : -size);
    }
    run_and_judge(given, inputs);
  });
}

// Equal elements of dy, whose sums are rounded alike in each lane and each block: mean(dy) then has
// to be within a few ulp of dy. (In rows of 100,000 the reference's own sums are off by more.)
void test_equal_elements_of_dy(uint64_t seed) {
  for_each_kind([&](Case given) {
    given.has_weight = false;
    for (const int64_t cols : {100, 20000}) {
      Random random(given.seed = ++seed);
      given.shape = {2, cols, 1};
      Inputs inputs = make_inputs(given);
      for (int64_t row = 0; row < given.rows(); ++row) {
        const Real dy = random.uniform();
        for (int64_t col = 0; col < cols; ++col) {
          inputs.x.set(row, col, random.coin() ? 0.3L : -0.3L);
          inputs.dy.set(row, col, dy);
        }
      }
      run_and_judge(given, inputs);
    }
  });
}

}  // namespace

int main() {
  test_every_width(1000000);
  test_widths_of_several_parts(6000056);
  test_every_number_of_rows(2000000);
  test_many_rows(3000000);
  test_terms_of_one_size(4000000);
  test_equal_elements_of_dy(5000000);
  print_worst();
  return finish();
}
