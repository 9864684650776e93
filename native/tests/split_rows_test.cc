// Rows that are split: the steps over two parts of every row, between which this program adds up what
// they have, as processes would. y and dx are those of whole rows.
#include <cmath>
#include <vector>

#include "judge.h"
#include "runtime/thread_pool.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

using Step = SplitRows::Step;
using Numbers = std::vector<double>;  // (count, rows)

struct Split {
  const Case given;
  const int64_t first_part;  // columns of it
  const Inputs inputs = make_inputs(given);
  Outputs outputs = make_outputs(given, inputs);
  const size_t rows = static_cast<size_t>(given.rows());
  Numbers statistics = Numbers(4 * rows);  // rstd, mean, residual, power

  static const void* moved(const void* data, int64_t elements, DataType type) {
    return static_cast<const char*>(data) + elements * size_of(type);
  }
  static Array columns(const Tensor& tensor, int64_t begin) {
    Array array = tensor.array();
    array.data = const_cast<void*>(moved(array.data, begin * array.col_stride, tensor.type()));
    return array;
  }

  void step(Step kind, int64_t begin, int64_t end, Numbers& numbers, const Threads& threads) {
    SplitRows job = {};
    job.step = kind;
    job.problem =
        problem_of(given, inputs, inputs.x, {nullptr, nullptr, nullptr, {given.shape.inner}});
    job.problem.shape.cols = end - begin;
    job.problem.x = columns(inputs.x, begin);
    if (given.has_weight)
      job.problem.weight = moved(inputs.weight.data(), begin, given.parameter_type);
    if (given.has_bias) job.bias = moved(inputs.bias.data(), begin, given.parameter_type);
    job.dy = columns(inputs.dy, begin);
    if (kind == Step::norm) job.result = columns(outputs.y, begin);
    if (kind == Step::gradient) job.result = columns(outputs.dx, begin);
    job.statistics = statistics.data();
    job.numbers = numbers.data();
    job.stride = static_cast<int64_t>(rows);
    CHECK(split_rows(job, threads) == Status::ok, "a step: out of memory");
  }
  // Each part's numbers.
  std::vector<Numbers> of_parts(Step kind, size_t count, const Threads& threads) {
    std::vector<Numbers> all(2, Numbers(count * rows));
    step(kind, 0, first_part, all[0], threads);
    step(kind, first_part, given.shape.cols, all[1], threads);
    return all;
  }

  void merge(const std::vector<Numbers>& moments) {
    const Real share[] = {static_cast<Real>(first_part) / given.shape.cols,
                          static_cast<Real>(given.shape.cols - first_part) / given.shape.cols};
    const auto real = [](double value) { return static_cast<Real>(value); };
    for (size_t row = 0; row < rows; ++row) {
      // As distances from the first part's mean, so that no digit is lost.
      const Real near = given.centered ? real(moments[0][rows + row]) : 0;
      Real offset[2] = {}, variance = 0;
      if (given.centered)
        for (size_t part = 0; part < 2; ++part) {
          offset[part] = real(moments[part][rows + row]) - near;
          if (given.type == DataType::float64) offset[part] += real(moments[part][2 * rows + row]);
        }
      const Real rest = offset[0] + share[1] * (offset[1] - offset[0]);
      for (size_t part = 0; part < 2; ++part) {
        const Real deviation = real(moments[part][row]), distance = offset[part] - rest;
        variance += share[part] * (deviation * deviation + distance * distance);
      }
      const Real root = std::sqrt(variance + static_cast<Real>(given.eps));
      const auto mean = static_cast<double>(near + rest);
      int power = 0;
      if (given.type == DataType::float64)
        std::frexp(std::max(root, std::ldexp(std::fabs(real(mean)), -500)), &power);
      statistics[row] = root == 0 ? 0 : static_cast<double>(1 / std::ldexp(root, -power));
      statistics[rows + row] = std::ldexp(mean, -power);
      statistics[2 * rows + row] =
          static_cast<double>(std::ldexp((near - real(mean)) + rest, -power));
      statistics[3 * rows + row] = power;
    }
  }

  // The means of g * xhat and of g.
  Numbers means(const std::vector<Numbers>& sums) const {
    const auto n = static_cast<double>(given.shape.cols);
    Numbers result(2 * rows);
    for (size_t row = 0; row < rows; ++row) {
      const auto total = [&](size_t k) {
        return sums[0][k * rows + row] + sums[1][k * rows + row];
      };
      const double rstd = statistics[row], power = statistics[3 * rows + row];
      const double root_eps = std::ldexp(std::sqrt(given.eps), static_cast<int>(-power));
      const double length = 1 - root_eps * rstd * (root_eps * rstd);
      result[row] = total(1) == 0 ? 0 : total(0) / total(1) * length;
      if (given.centered) result[rows + row] = total(2) / n;
      // An infinity in one part makes the whole row NaN.
      if (!std::isfinite(result[row]) || !std::isfinite(result[rows + row]))
        result[row] = std::numeric_limits<double>::quiet_NaN();
    }
    return result;
  }

  void run(const Threads& threads) {
    merge(of_parts(Step::moments, 3, threads));
    Numbers nothing;
    for (const bool second : {false, true})
      step(Step::norm, second ? first_part : 0, second ? given.shape.cols : first_part, nothing,
           threads);
    Numbers of_rows = means(of_parts(Step::sums, 3, threads));
    for (const bool second : {false, true})
      step(Step::gradient, second ? first_part : 0, second ? given.shape.cols : first_part, of_rows,
           threads);
  }
};

void run_and_judge_split(Case given, int64_t first_part, const Threads& threads = kAlone) {
  if (given.type == DataType::float64 && !kCanJudgeFloat64) return;
  given.wants_dweight = given.wants_dbias = false;
  given.saves_mean = given.saves_rstd = given.saves_residual = false;
  Split split{given, first_part};
  split.run(threads);
  const Judge judge(split.given, split.inputs);
  judge.forward(split.outputs);
  judge.backward(split.outputs);
}

bool is_at_limits(Values values) {
  return values == Values::near_largest || values == Values::near_largest_one_sign ||
         values == Values::subnormals || values == Values::constant || values == Values::mixed;
}

void test_every_layout_and_kind_of_values(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Shape& shape :
         {Shape{13, 2, 1}, Shape{13, 70, 1}, Shape{5, 300, 1}, Shape{3, 5, 70}, Shape{2, 35, 13}})
      for (int values = 0; values <= static_cast<int>(Values::mixed); ++values)
        for (const bool of_dy : {false, true}) {
          Random random(given.seed = ++seed);
          if (!is_taken(seed)) continue;
          vary_parameters(given, random);
          vary_memory(given, random);
          given.in_place = false;
          given.wants_dx = true;
          given.shape = shape;
          (of_dy ? given.dy_values : given.x_values) = static_cast<Values>(values);
          (of_dy ? given.x_values : given.dy_values) = Values::ordinary;
          given.eps = random.coin() ? 1e-5 : 1e-3;
          // The sums of g are doubles, which those of the largest or subnormal doubles are not.
          if (given.type == DataType::float64 && is_at_limits(given.dy_values)) continue;
          run_and_judge_split(given, 1 + random.below(shape.cols - 1));
        }
  });
}

// The bits of one thread.
void test_threads(uint64_t seed) {
  for_each_large_kind([&](Case given) {
    for (const Shape& shape : {Shape{700, 515, 1}, Shape{4, 60, 700}}) {
      given.seed = ++seed;
      if (!is_taken(seed)) continue;
      given.shape = shape;
      Split alone{given, 200 % shape.cols}, together{given, 200 % shape.cols};
      alone.run(kAlone);
      together.run(pool_threads());
      CHECK(alone.outputs.y.buffer().same_bytes(together.outputs.y.buffer()) &&
                alone.outputs.dx.buffer().same_bytes(together.outputs.dx.buffer()),
            "threads change bits: %s", given.text().c_str());
    }
  });
}

}  // namespace

int main() {
  test_every_layout_and_kind_of_values(1000000);
  set_num_threads(3);
  test_threads(2000044);
  print_worst();
  return finish();
}
