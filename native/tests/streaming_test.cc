// Large arrays, which are fetched ahead of their use, and still larger ones, whose outputs are
// written past the cache: the bits of smaller ones, and no byte beside the rows.
#include <thread>
#include <vector>

#include "judge.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Of x: more than enough for schedule.cc, and just enough.
constexpr int64_t kStreamBytes = 16 * 1024 * 1024;
constexpr int64_t kFarBytes = 2 * 1024 * 1024, kFetchBytes = 1024 * 1024;

void run_on_two(void*, int64_t tasks, Threads::Body body, void* context) {
  std::thread other(body, context, tasks / 2, tasks);
  body(context, 0, tasks / 2);
  other.join();
}
constexpr Threads kTwo = {2, nullptr, run_on_two};

void check_same_bits_as_in_parts(Case given) {
  Random random(given.seed);
  Inputs inputs;
  inputs.x = Tensor(given.type, given.shape, given.x_layout, random);
  inputs.dy = Tensor(given.type, given.shape, given.dy_layout, random);
  // Numbers made only once: what is judged here is where they go.
  Case small = given;
  small.shape.outer = 61;
  const Inputs pattern = make_inputs(small);
  for (int64_t row = 0; row < given.rows(); ++row) {
    const auto bytes = static_cast<size_t>(given.shape.cols * size_of(given.type));
    std::memcpy(const_cast<void*>(inputs.x.at(row, 0)), pattern.x.at(row % 61, 0), bytes);
    std::memcpy(const_cast<void*>(inputs.dy.at(row, 0)), pattern.dy.at(row % 61, 0), bytes);
  }
  inputs.weight = pattern.weight.copy(random);
  inputs.bias = pattern.bias.copy(random);
  Outputs outputs = make_outputs(given, inputs);
  const Tensor& y = outputs.y;
  const Tensor& dx = outputs.dx;
  run_forward(given, inputs, outputs, kTwo);
  run_backward(given, inputs, outputs, kTwo);

  small.in_place = false;
  Outputs expected = make_outputs(small, pattern);
  const Judge judge(small, pattern);
  run_forward(small, pattern, expected);
  run_backward(small, pattern, expected);
  judge.forward(expected);
  judge.backward(expected);
  const auto bytes = static_cast<size_t>(given.shape.cols * size_of(given.type));
  for (int64_t row = 0; row < given.rows(); ++row) {
    const auto shown = static_cast<long long>(row);
    CHECK(std::memcmp(y.at(row, 0), expected.y.at(row % 61, 0), bytes) == 0,
          "y of row %lld differs: %s", shown, given.text().c_str());
    CHECK(std::memcmp(dx.at(row, 0), expected.dx.at(row % 61, 0), bytes) == 0,
          "dx of row %lld differs: %s", shown, given.text().c_str());
    for (Tensor Outputs::* statistic : {&Outputs::mean, &Outputs::rstd, &Outputs::residual})
      CHECK(std::memcmp((outputs.*statistic).at(0, row), (expected.*statistic).at(0, row % 61),
                        static_cast<size_t>(size_of(given.compute()))) == 0,
            "statistics of row %lld differ: %s", shown, given.text().c_str());
  }
  CHECK(y.gaps_are_poison() && dx.gaps_are_poison(), "written between the rows: %s",
        given.text().c_str());
}

struct Kind {
  int64_t cols;
  Types types;
  bool centered;
};

// 1027: rows begin anywhere in a line, and are longer than what a line writer takes at once. 1024:
// all rows are as aligned as the first. 7: several rows in a line.
constexpr Kind kKinds[] = {
    {1027, {DataType::float32, DataType::float32}, true},
    {1027, {DataType::float64, DataType::float64}, false},
    {1027, {DataType::bfloat16, DataType::bfloat16}, true},
    {1027, {DataType::float16, DataType::float32}, true},
    {1024, {DataType::float32, DataType::float32}, false},
    {1024, {DataType::bfloat16, DataType::float32}, true},
    {7, {DataType::float32, DataType::float32}, true},
    {13, {DataType::bfloat16, DataType::bfloat16}, false},
};

Case case_of(const Kind& kind, int64_t bytes, uint64_t seed) {
  Case given;
  given.type = kind.types.type;
  given.parameter_type = kind.types.parameter_type;
  given.centered = kind.centered;
  given.seed = seed;
  given.shape = {bytes / (kind.cols * size_of(given.type)) + 1, kind.cols, 1};
  given.x_layout = given.dy_layout = Layout::padded;
  given.output_layout = kind.cols == 1024 || seed % 2 == 0 ? Layout::dense : Layout::padded;
  given.x_values = Values::mixed;
  return given;
}

void test_streamed_rows(uint64_t seed) {
  for (const Kind& kind : kKinds) {
    const Case given = case_of(kind, kStreamBytes, ++seed);
    if (given.type != DataType::float64 || kCanJudgeFloat64) check_same_bits_as_in_parts(given);
  }
}

// 61, 100: several rows, and fewer in the last batch, are normalized together.
void test_rows_fetched_ahead(int64_t bytes, uint64_t seed) {
  for (const int64_t cols : {61, 100, 1027, 2053})
    for (const DataType type : {DataType::float32, DataType::bfloat16})
      for (const bool in_place : {false, true}) {
        Case given = case_of({cols, {type, type}, true}, bytes, ++seed);
        given.in_place = in_place;
        given.x_values = Values::ordinary;
        check_same_bits_as_in_parts(given);
      }
}

}  // namespace

int main() {
  test_streamed_rows(1000000);
  test_rows_fetched_ahead(kFetchBytes, 2000000);
  test_rows_fetched_ahead(kFarBytes, 3000000);
  return finish();
}
