// Strided rows, side by side: every number of neighbors, and every pair of layouts.
#include "judge.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Up to two full tiles of 64 rows, and the rows left over.
void test_every_number_of_neighbors(uint64_t seed) {
  for (int64_t inner = 2; inner <= 140; ++inner)
    for_each_kind([&](Case given) {
      Random random(given.seed = ++seed);
      if (!is_taken(seed)) return;
      vary_parameters(given, random);
      vary_wanted(given, random);
      vary_memory(given, random);
      given.shape = {1 + random.below(3), 1 + random.below(inner < 40 ? 40 : 12), inner};
      given.x_values = random.coin() ? Values::ordinary : Values::mean_1e4;
      run_and_judge(given);
    });
}

void test_long_columns(uint64_t seed) {
  for (const int64_t cols : {63, 64, 65, 255, 257, 1025})
    for_each_kind([&](Case given) {
      Random random(given.seed = ++seed);
      if (!is_taken(seed)) return;
      vary_memory(given, random);
      given.shape = {1, cols, 2 + random.below(6)};
      given.x_values = Values::mean_2_to_20;
      run_and_judge(given);
    });
}

void test_every_pair_of_layouts(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const int64_t inner : {1, 2, 21, 66})
      for (int input = 0; input < 5; ++input)
        for (int output = 0; output < 4; ++output) {
          given.seed = ++seed;
          if (!is_taken(seed)) continue;
          given.shape = {5, inner == 1 ? 41 : 6, inner};
          given.x_layout = static_cast<Layout>(input);
          given.dy_layout = static_cast<Layout>((input + output) % 5);
          given.output_layout = static_cast<Layout>(output);
          run_and_judge(given);
        }
  });
}

void test_in_place(uint64_t seed) {
  for_each_kind([&](Case given) {
    given.in_place = true;
    for (const Shape& shape : {Shape{9, 70, 1}, Shape{2, 5, 70}, Shape{3, 1, 1}, Shape{2, 17, 2}})
      for (int layout = 0; layout < 4; ++layout)
        for (const bool dx_in_x : {false, true}) {
          given.seed = ++seed;
          if (!is_taken(seed)) continue;
          given.shape = shape;
          given.x_layout = given.dy_layout = static_cast<Layout>(layout);
          given.dx_in_x = dx_in_x;
          run_and_judge(given);
          given.x_values = given.dy_values = Values::mixed;
          run_and_judge(given);
          given.x_values = given.dy_values = Values::off_zero;
        }
  });
}

}  // namespace

int main() {
  test_every_number_of_neighbors(1000000);
  test_long_columns(2000000);
  test_every_pair_of_layouts(3000000);
  test_in_place(4000000);
  print_worst();
  return finish();
}
