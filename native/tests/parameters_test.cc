// Every combination of parameters, wanted gradients, statistics and eps.
#include "judge.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

void for_each_set_of_parameters(const Case& given, void (*f)(Case)) {
  for (const bool weight : {false, true})
    for (const bool zero_centered : {false, true})
      for (const bool bias : {false, true}) {
        Case next = given;
        next.has_weight = weight;
        next.zero_centered_weight = weight && zero_centered;
        next.has_bias = bias;
        if (weight || !zero_centered) f(next);
      }
}

// (7, 35): groups of two or four rows and rows left over; a pack of 32, and a tail.
constexpr Shape kShapes[] = {{7, 35, 1}, {2, 7, 19}};

void test_every_set_of_gradients(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : kShapes) {
      given.shape = shape;
      given.seed = ++seed;
      for_each_set_of_parameters(given, [](Case next) {
        for (int wanted = 0; wanted < 8; ++wanted) {
          next.wants_dx = wanted & 1;
          next.wants_dweight = wanted & 2;
          next.wants_dbias = wanted & 4;
          next.gives_residual = !next.gives_residual;
          next.eps = wanted % 3 == 0 ? 0 : 1e-5;
          run_and_judge(next);
        }
      });
    }
  });
}

void test_every_set_of_statistics(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : kShapes) {
      given.shape = shape;
      given.seed = ++seed;
      for (int saved = 0; saved < 8; ++saved) {
        given.saves_mean = saved & 1;
        given.saves_rstd = saved & 2;
        given.saves_residual = saved & 4;
        run_and_judge(given);
      }
    }
  });
}

void test_every_eps(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : kShapes)
      for (const double eps : {0.0, 1e-12, 1e-5, 1e-3, 1.0, 1e4})
        for (const Values values : {Values::ordinary, Values::smallest_normals, Values::subnormals,
                                    Values::near_largest}) {
          given.shape = shape;
          given.seed = ++seed;
          given.eps = eps;
          given.x_values = values;
          run_and_judge(given);
        }
  });
}

}  // namespace

int main() {
  test_every_set_of_gradients(1000000);
  test_every_set_of_statistics(2000000);
  test_every_eps(3000000);
  print_worst();
  return finish();
}
