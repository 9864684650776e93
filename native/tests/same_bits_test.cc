// What must not change a bit of the results: docs/specification.md, "The same bits".
#include <thread>
#include <vector>

#include "judge.h"
#include "kernels/kernels.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

// Uneven pieces on five threads, the last piece started first.
void run_scattered(void*, int64_t tasks, Threads::Body body, void* context) {
  const int64_t pieces = std::min<int64_t>(tasks, 5);
  std::vector<std::thread> threads;
  for (int64_t piece = pieces - 1; piece >= 0; --piece)
    threads.emplace_back(body, context, piece * tasks / pieces, (piece + 1) * tasks / pieces);
  for (std::thread& thread : threads) thread.join();
}
constexpr Threads kScattered = {5, nullptr, run_scattered, 1};

// One task at a time, the last one first.
void run_one_by_one(void*, int64_t tasks, Threads::Body body, void* context) {
  for (int64_t task = tasks - 1; task >= 0; --task) body(context, task, task + 1);
}
constexpr Threads kOneByOne = {2, nullptr, run_one_by_one, 1};

bool same_statistics(const Case& given, const Outputs& a, int64_t row, const Outputs& b,
                     int64_t other_row) {
  for (const auto& [left, right] : {std::pair{&a.mean, &b.mean}, std::pair{&a.rstd, &b.rstd},
                                    std::pair{&a.residual, &b.residual}})
    if (std::memcmp(left->at(0, row), right->at(0, other_row),
                    static_cast<size_t>(size_of(given.compute()))) != 0)
      return false;
  return true;
}

bool same_parameters(const Outputs& a, const Outputs& b) {
  return a.dweight.same_rows(b.dweight) && a.dbias.same_rows(b.dbias);
}

// The part of the inputs that begins at (outer, inner) and has the part's shape, as a copy.
Inputs part_of(const Case& whole, const Inputs& inputs, const Case& part, int64_t outer,
               int64_t inner) {
  Inputs result = make_inputs(part);
  for (int64_t row = 0; row < part.rows(); ++row) {
    const int64_t from =
        (outer + row / part.shape.inner) * whole.shape.inner + inner + row % part.shape.inner;
    for (int64_t col = 0; col < part.shape.cols; ++col) {
      result.x.set(row, col, inputs.x.get(from, col));
      result.dy.set(row, col, inputs.dy.get(from, col));
    }
  }
  for (int64_t col = 0; col < part.shape.cols; ++col) {
    result.weight.set(0, col, inputs.weight.get(0, col));
    result.bias.set(0, col, inputs.bias.get(0, col));
  }
  return result;
}

void check_part(const Case& whole, const Inputs& inputs, const Outputs& expected,
                const Shape& shape, int64_t outer, int64_t inner) {
  Case part = whole;
  part.shape = shape;
  const Inputs part_inputs = part_of(whole, inputs, part, outer, inner);
  const Outputs got = run(part, part_inputs);
  for (int64_t row = 0; row < part.rows(); ++row) {
    const int64_t from =
        (outer + row / shape.inner) * whole.shape.inner + inner + row % shape.inner;
    CHECK(got.y.same_row(expected.y, row, from) && same_statistics(whole, got, row, expected, from),
          "forward: row %lld has other bits in a smaller batch: %s", static_cast<long long>(from),
          whole.text().c_str());
    CHECK(got.dx.same_row(expected.dx, row, from),
          "dx: row %lld has other bits in a smaller batch: %s", static_cast<long long>(from),
          whole.text().c_str());
  }
}

constexpr Values kValues[] = {Values::ordinary, Values::mean_2_to_20, Values::mixed};

void test_a_batch_of_one(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const int64_t cols : {1, 3, 17, 67, 257, 1025})
      for (const Values values : kValues) {
        given.seed = ++seed;
        given.shape = {19, cols, 1};
        given.x_values = given.dy_values = values;
        const Inputs inputs = make_inputs(given);
        const Outputs expected = run(given, inputs);
        for (const int64_t row : {0, 1, 7, 10, 18})
          check_part(given, inputs, expected, {1, cols, 1}, row, 0);
        check_part(given, inputs, expected, {6, cols, 1}, 3, 0);
      }
  });
}

// 40007: two parts, the last one shorter.
void test_a_batch_of_one_row_of_several_parts(uint64_t seed) {
  for_each_large_kind([&](Case given) {
    given.seed = ++seed;
    if (!is_taken(seed)) return;
    given.shape = {kFiniteKinds, 40007, 1};
    given.x_values = given.dy_values = Values::mixed;
    const Inputs inputs = make_inputs(given);
    const Outputs expected = run(given, inputs);
    for (const int64_t row : {0, 10})
      check_part(given, inputs, expected, {1, given.shape.cols, 1}, row, 0);
    check_part(given, inputs, expected, {6, given.shape.cols, 1}, 3, 0);
  });
}

// Part of a row's neighbors, at least 2: inner == 1 is the contiguous layout.
void test_fewer_neighbors(uint64_t seed) {
  for_each_kind([&](Case given) {
    for (const Values values : kValues) {
      given.seed = ++seed;
      given.shape = {3, 9, 149};
      given.x_values = given.dy_values = values;
      const Inputs inputs = make_inputs(given);
      const Outputs expected = run(given, inputs);
      for (const int64_t inner : {2, 3, 16, 65})
        for (const int64_t at : {0, 1, 63, 84})
          check_part(given, inputs, expected, {1, 9, inner}, at % 3, at);
    }
  });
}

// One row is NaN, and then its neighbors too.
void test_nan_beside_nan(uint64_t seed) {
  for_each_kind([&](Case given) {
    given.seed = ++seed;
    given.shape = {1, 9, 21};
    Inputs inputs = make_inputs(given);
    constexpr int64_t row = 10;
    const Real nan = -std::numeric_limits<Real>::quiet_NaN();
    inputs.x.set(row, 4, nan);
    const Outputs expected = run(given, inputs);
    for (int64_t other = 0; other < given.rows(); ++other) inputs.x.set(other, 4, nan);
    const Outputs got = run(given, inputs);
    CHECK(got.y.same_row(expected.y, row, row) && got.dx.same_row(expected.dx, row, row),
          "a row of NaNs has other bits beside NaNs: %s", given.text().c_str());
  });
}

void check_threads(const Case& given) {
  const Inputs inputs = make_inputs(given);
  const Outputs expected = run(given, inputs);
  for (const Threads& threads : {kScattered, kOneByOne}) {
    if (threads.count == kOneByOne.count && !is_taken(given.seed)) continue;
    const Outputs got = run(given, inputs, threads);
    CHECK(got.y.same_rows(expected.y) && got.dx.same_rows(expected.dx),
          "y or dx differ with %d threads: %s", threads.count, given.text().c_str());
    CHECK(same_parameters(got, expected), "gradients of parameters differ with %d threads: %s",
          threads.count, given.text().c_str());
  }
}

// Few long blocks, strips of columns, few blocks of wide rows, and many blocks.
constexpr Shape kSeveralTasks[] = {{1100, 33, 1}, {3, 101, 97}, {18, 8200, 1}, {4001, 17, 1}};

void test_threads(uint64_t seed) {
  for_each_large_kind([&](Case given) {
    for (const Shape& shape : kSeveralTasks) {
      given.seed = ++seed;
      given.shape = shape;
      given.x_values = Values::mixed;
      check_threads(given);
    }
  });
}

// Fewer rows than threads, which then share each row; ordinary rows, and one that is not.
void test_threads_that_share_rows(uint64_t seed) {
  for_each_large_kind([&](Case given) {
    for (const auto& [rows, parts] : {std::pair<int64_t, int64_t>{1, 4}, {3, 2}}) {
      given.seed = ++seed;
      given.shape = {rows, parts * kPartCols - 1001, 1};
      given.x_values = rows == 1 ? Values::ordinary : Values::mixed;
      check_threads(given);
    }
  });
}

// That they do share it.
void test_threads_get_parts_of_a_row() {
  static int64_t most_tasks;
  const Threads two = {2, nullptr, [](void*, int64_t tasks, Threads::Body body, void* context) {
                         most_tasks = std::max(most_tasks, tasks);
                         body(context, 0, tasks);
                       }};
  Case given;
  given.shape = {1, 4 * kPartCols, 1};
  given.wants_dweight = given.wants_dbias = false;  // whose sums have tasks of their own
  const Inputs inputs = make_inputs(given);
  const Outputs expected = run(given, inputs), got = run(given, inputs, two);
  CHECK(most_tasks == 4, "two threads got %lld tasks of one row of 4 parts",
        static_cast<long long>(most_tasks));
  CHECK(got.dx.same_rows(expected.dx), "dx differs where threads share a row");
}

// A framework's threads may do another call's work while a call waits for them.
void test_a_call_within_a_call(uint64_t seed) {
  static const auto other = [] {
    Case small;
    small.type = small.parameter_type = DataType::bfloat16;
    small.shape = {40, 1000, 1};
    run(small, make_inputs(small));
  };
  const Threads busy = {2, nullptr, [](void*, int64_t tasks, Threads::Body body, void* context) {
                          other();
                          body(context, 0, tasks);
                        }};
  Case given;
  given.type = given.parameter_type = DataType::bfloat16;
  given.shape = {300, 1000, 1};
  given.seed = seed;
  const Inputs inputs = make_inputs(given);
  const Outputs expected = run(given, inputs), got = run(given, inputs, busy);
  CHECK(got.y.same_rows(expected.y) && got.dx.same_rows(expected.dx) &&
            same_parameters(got, expected),
        "another call meanwhile changes the results");
}

// 8 blocks, and enough columns that their sums are reduced on threads too; the last strip is short.
void test_threads_that_reduce(uint64_t seed) {
  Random random(seed);
  for (const DataType type : {DataType::float32, DataType::bfloat16}) {
    Case given;
    given.type = given.parameter_type = type;
    given.shape = {128, 16411, 1};
    given.wants_dx = false;
    given.seed = ++seed;
    const Inputs inputs = make_inputs(given);
    const Outputs expected = run(given, inputs);
    for (const Threads& threads : {kScattered, kOneByOne}) {
      Outputs got = make_outputs(given, inputs);
      for (Tensor Outputs::* saved : {&Outputs::mean, &Outputs::rstd, &Outputs::residual})
        got.*saved = (expected.*saved).copy(random);
      CHECK(run_backward(given, inputs, got, threads) == Status::ok, "backward: out of memory");
      CHECK(same_parameters(got, expected), "gradients of parameters differ with %d threads: %s",
            threads.count, given.text().c_str());
    }
  }
}

// Calls f with a small case in both layouts, its inputs and its outputs. f may draw seeds too.
template <class F>
void for_each_small_case(uint64_t& seed, F f) {
  for_each_kind([&](Case given) {
    for (const Shape& shape : {Shape{9, 67, 1}, Shape{3, 11, 21}})
      for (const Values values : kValues) {
        given.seed = ++seed;
        given.shape = shape;
        given.x_values = given.dy_values = values;
        const Inputs inputs = make_inputs(given);
        f(given, inputs, run(given, inputs));
      }
  });
}

// Other addresses, strides and gaps, in place and not.
void test_memory(uint64_t seed) {
  for_each_small_case(seed, [&](const Case& given, const Inputs& inputs, const Outputs& expected) {
    for (int placing = 0; placing < 8; ++placing) {
      Case other = given;
      other.seed = ++seed;
      other.x_layout = static_cast<Layout>(placing % 4);
      other.dy_layout = other.output_layout = static_cast<Layout>(placing / 2);
      other.in_place = placing >= 4;
      other.dx_in_x = placing % 2 == 1;
      const Inputs placed = part_of(given, inputs, other, 0, 0);
      const Outputs got = run(other, placed);
      CHECK(got.y.same_rows(expected.y), "y differs at another place: %s", other.text().c_str());
      CHECK(got.dx.same_rows(expected.dx), "dx differs at another place: %s", other.text().c_str());
      CHECK(same_parameters(got, expected), "gradients of parameters differ: %s",
            other.text().c_str());
    }
  });
}

void test_what_else_is_wanted(uint64_t seed) {
  for_each_small_case(seed, [](const Case& given, const Inputs& inputs, const Outputs& expected) {
    for (int wanted = 0; wanted < 7; ++wanted) {
      Case less = given;
      less.wants_dx = wanted & 1;
      less.wants_dweight = wanted & 2;
      less.wants_dbias = wanted & 4;
      const Outputs got = run(less, inputs);
      CHECK((!less.wants_dx || got.dx.same_rows(expected.dx)) &&
                (!less.wants_dweight || got.dweight.same_rows(expected.dweight)) &&
                (!less.wants_dbias || got.dbias.same_rows(expected.dbias)),
            "a gradient has other bits than with all wanted: %s", less.text().c_str());
    }
  });
}

}  // namespace

int main() {
  test_a_batch_of_one(1000000);
  test_a_batch_of_one_row_of_several_parts(10000092);
  test_fewer_neighbors(2000000);
  test_nan_beside_nan(7000000);
  test_threads(3000000);
  test_threads_that_share_rows(8000000);
  test_threads_get_parts_of_a_row();
  test_a_call_within_a_call(9000000);
  test_threads_that_reduce(6000000);
  test_memory(4000000);
  test_what_else_is_wanted(5000000);
  return finish();
}
