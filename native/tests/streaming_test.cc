// Arrays large enough to be prefetched, and outputs large enough to be written past the cache: the
// same bits as in smaller arrays, and no byte written between the rows.
#include <iterator>
#include <thread>
#include <vector>

#include "judge.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Bytes of x: at the limits of schedule.cc, for streaming those of x and y, or x, dy and dx together.
constexpr int64_t kStreamBytes = 12 * 1024 * 1024, kStreamDxBytes = 8 * 1024 * 1024;
constexpr int64_t kL2Bytes = 2 * 1024 * 1024, kPrefetchBytes = 1024 * 1024;

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
  // The rows repeat a small pattern: what is tested here is where they are read and written.
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
  const Outputs outputs = run(given, inputs, kTwo);
  const Tensor& y = outputs.y;
  const Tensor& dx = outputs.dx;

  small.in_place = false;
  const Outputs expected = run(small, pattern);
  const Judge judge(small, pattern);
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
  int64_t bytes = kStreamBytes;
  Values values = Values::mixed;
};

// 1027: rows begin anywhere in a cache line, and are longer than one take() of the line writer.
// 1024: all rows are aligned alike. 7: several rows in a cache line. The forward streams aligned rows
// only: of the others, the first kind shows that.
constexpr Kind kKinds[] = {
    {1027, {DataType::float32, DataType::float32}, true},
    {1027, {DataType::float64, DataType::float64}, false, kStreamDxBytes},
    {1027, {DataType::float16, DataType::float32}, true, kStreamDxBytes},
    {1024, {DataType::float32, DataType::float32}, false},
    {1024, {DataType::bfloat16, DataType::float32}, true, kStreamBytes, Values::ordinary},
    {7, {DataType::float32, DataType::float32}, true, kStreamDxBytes},
    {13, {DataType::bfloat16, DataType::bfloat16}, false, kStreamDxBytes, Values::ordinary},
    {1027, {DataType::bfloat16, DataType::bfloat16}, true, kStreamDxBytes},
};

Case case_of(const Kind& kind, uint64_t seed) {
  Case given;
  given.type = kind.types.type;
  given.parameter_type = kind.types.parameter_type;
  given.centered = kind.centered;
  given.seed = seed;
  given.shape = {kind.bytes / (kind.cols * size_of(given.type)) + 1, kind.cols, 1};
  given.x_layout = given.dy_layout = Layout::padded;
  given.output_layout = kind.cols == 1024 || seed % 2 == 0 ? Layout::dense : Layout::padded;
  given.x_values = kind.values;
  return given;
}

void test_streamed_rows(uint64_t seed) {
  for (const Kind& kind : kKinds) {
    // The last one has the type of another, and the width of three.
    if (&kind == std::end(kKinds) - 1 && every() > 1) continue;
    const Case given = case_of(kind, ++seed);
    if (given.type != DataType::float64 || kCanJudgeFloat64) check_same_bits_as_in_parts(given);
  }
}

struct Columns {
  DataType type;
  int64_t inner;
  Values values;
};

// Strided rows. Of 1056 side by side, each column begins with a cache line, and the last strip is
// short; of 1031, most do not, and none are streamed.
constexpr Columns kColumns[] = {
    {DataType::float32, 1056, Values::mixed},     {DataType::float64, 1056, Values::mixed},
    {DataType::bfloat16, 1031, Values::ordinary}, {DataType::bfloat16, 1056, Values::ordinary},
    {DataType::float16, 1056, Values::ordinary},
};

void test_streamed_columns(uint64_t seed) {
  for (const auto& [type, inner, values] : kColumns) {
    if (type == DataType::float16 && every() > 1) continue;  // it differs in conversions alone
    Case given;
    given.type = given.parameter_type = type;
    given.shape = {kStreamBytes / (24 * inner * size_of(given.type)) + 1, 24, inner};
    given.x_values = values;
    given.seed = ++seed;
    Case small = given;
    small.shape.outer = 3;
    const Inputs pattern = make_inputs(small);
    Random random(given.seed);
    Inputs inputs = {Tensor(given.type, given.shape, Layout::dense, random),
                     Tensor(given.type, given.shape, Layout::dense, random),
                     pattern.weight.copy(random), pattern.bias.copy(random)};
    const auto bytes = static_cast<size_t>(inner * size_of(given.type));
    for (int64_t outer = 0; outer < given.shape.outer; ++outer)
      for (int64_t col = 0; col < given.shape.cols; ++col) {
        const int64_t row = outer * inner, from = outer % 3 * inner;
        std::memcpy(const_cast<void*>(inputs.x.at(row, col)), pattern.x.at(from, col), bytes);
        std::memcpy(const_cast<void*>(inputs.dy.at(row, col)), pattern.dy.at(from, col), bytes);
      }
    const Outputs got = run(given, inputs, kTwo), expected = run(small, pattern);
    for (int64_t row = 0; row < given.rows(); ++row) {
      const int64_t from = row % (3 * inner);
      CHECK(got.y.same_row(expected.y, row, from) && got.dx.same_row(expected.dx, row, from),
            "row %lld differs: %s", static_cast<long long>(row), given.text().c_str());
    }
  }
}

// 61, 100: batches of several rows, the last one shorter. Each in place at one of the two sizes.
void test_prefetched_rows(uint64_t seed) {
  for (const int64_t bytes : {kPrefetchBytes, kL2Bytes})
    for (const int64_t cols : {61, 100, 1027, 2053})
      for (const DataType type : {DataType::float32, DataType::bfloat16}) {
        Case given = case_of({cols, {type, type}, true, bytes, Values::ordinary}, ++seed);
        const bool is_short = cols < 1000;
        given.in_place = (is_short != (type == DataType::float32)) != (bytes == kL2Bytes);
        check_same_bits_as_in_parts(given);
      }
}

}  // namespace

int main() {
  // With these seeds the first y begins with a page, and its other rows are not aligned; the y of 1024
  // columns, and all y and dx of columns, begin with cache lines.
  test_streamed_rows(1000015);
  test_streamed_columns(4000812);
  test_prefetched_rows(2000000);
  return finish();
}
