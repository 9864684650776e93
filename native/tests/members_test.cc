// Rows that do not follow each other at one stride, and groups of rows with parameters of their
// own, get the bits of calls on contiguous copies, one for each group.
#include <vector>

#include "check.h"
#include "layout.h"
#include "numbers.h"
#include "random.h"
#include "runtime/thread_pool.h"
#include "variations.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;

using Bytes = std::vector<char>;

Bytes random_numbers(DataType type, int64_t count, Random& random) {
  Bytes result(static_cast<size_t>(count * size_of(type)));
  for (int64_t at = 0; at < count; ++at) write(type, result.data(), at, random.normal());
  return result;
}

// A tensor with its axes in some order in memory, and gaps.
struct Strided {
  DataType type;
  Ordered ordered;
  Bytes memory;

  Strided(DataType of_type, const Order& order, Random& random) : type(of_type) {
    int64_t stride = 1;
    std::vector<int64_t> axes;
    for (int64_t at = 0; at < order.count; ++at)
      if (order.part[at] == Order::outer) axes.push_back(at);
    for (size_t at = axes.size(); at-- > 1;)
      if (random.below(3) == 0)
        std::swap(axes[at], axes[static_cast<size_t>(random.below(static_cast<int64_t>(at)))]);
    for (int64_t at = order.count - 1; at >= 0; --at)
      if (order.part[at] != Order::outer) {
        ordered.strides[at] = stride;
        stride *= order.sizes[at];
      }
    if (random.coin()) stride += 3;
    for (size_t at = axes.size(); at-- > 0;) {
      ordered.strides[axes[at]] = stride;
      stride = stride * order.sizes[axes[at]] + (random.coin() ? 5 : 0);
    }
    memory = random_numbers(type, stride, random);
    ordered.data = memory.data();
  }
};

// An element's index in the order, and its place in its member's contiguous copy; and the places of
// its row in that copy's statistics and in those of the whole call.
struct Element {
  int64_t index[kMostAxes];
  size_t own, own_row, row;

  size_t place_in(const Strided& tensor, const Order& order) const {
    int64_t offset = 0;
    for (int64_t at = 0; at < order.count; ++at) offset += index[at] * tensor.ordered.strides[at];
    return static_cast<size_t>(offset);
  }
};

std::vector<std::vector<Element>> elements_of_members(const Order& order, const Problem& problem) {
  std::vector<std::vector<Element>> members(static_cast<size_t>(problem.members.count()));
  const int64_t cols = problem.shape.cols, inner = problem.shape.inner;
  for (int64_t at_all = 0; at_all < count_elements(order.count, order.sizes); ++at_all) {
    Element element;
    int64_t rest = at_all, member = 0, own_row = 0, row = 0, col = 0;
    for (int64_t at = order.count - 1; at >= 0; --at) {
      element.index[at] = rest % order.sizes[at];
      rest /= order.sizes[at];
    }
    for (int64_t at = 0; at < order.count; ++at) {
      const bool is_col = order.part[at] == Order::cols;
      int64_t& part = is_col ? col : order.varies[at] ? member : own_row;
      part = part * order.sizes[at] + element.index[at];
      if (!is_col) row = row * order.sizes[at] + element.index[at];
    }
    element.own = static_cast<size_t>((own_row / inner * cols + col) * inner + own_row % inner);
    element.own_row = static_cast<size_t>(own_row);
    element.row = static_cast<size_t>(row);
    members[static_cast<size_t>(member)].push_back(element);
  }
  return members;
}

struct Call {
  const Order& order;
  Problem problem;
  Bytes weight, bias;
  Strided x, dy, y, dx;
  Bytes mean, rstd, residual, dweight, dbias;

  Call(const Order& of_order, Problem of_call, int64_t parameters, int64_t rows, Random& random)
      : order(of_order),
        problem(of_call),
        weight(random_numbers(problem.parameter_type, parameters, random)),
        bias(random_numbers(problem.parameter_type, parameters, random)),
        x(problem.type, order, random),
        dy(problem.type, order, random),
        y(problem.type, order, random),
        dx(problem.type, order, random),
        dweight(weight.size()),
        dbias(bias.size()) {
    for (Bytes* each : {&mean, &rstd, &residual})
      each->resize(static_cast<size_t>(rows * size_of(compute_type(problem.type))));
  }

  void run(const Threads& threads) {
    problem.weight = weight.data();
    problem.statistics = {mean.data(), rstd.data(), residual.data(), {}};
    Forward forth = {};
    Order::Placed placed[] = {{&x.ordered, &problem.x}, {&y.ordered, &forth.y}, {}};
    CHECK(order.place(placed, 2, problem), "too many axes");
    forth.problem = problem;
    forth.bias = bias.data();
    CHECK(forward(forth, threads) == Status::ok, "memory");
    Backward back = {};
    placed[1] = {&dy.ordered, &back.dy};
    placed[2] = {&dx.ordered, &back.dx};
    CHECK(order.place(placed, 3, problem), "too many axes");
    back.problem = problem;
    back.dweight = dweight.data();
    back.dbias = dbias.data();
    CHECK(backward(back, threads) == Status::ok, "memory");
  }

  // The same for each member, on contiguous copies.
  void check() const {
    const std::vector<std::vector<Element>> elements = elements_of_members(order, problem);
    for (size_t member = 0; member < elements.size(); ++member)
      check_member(static_cast<int64_t>(member), elements[member]);
  }

  void check_member(int64_t member, const std::vector<Element>& elements) const {
    const Shape shape = {problem.shape.outer, problem.shape.cols, problem.shape.inner};
    const auto bytes = static_cast<size_t>(size_of(problem.type)),
               statistic = static_cast<size_t>(size_of(compute_type(problem.type)));
    const int64_t parameter = shape.cols * size_of(problem.parameter_type);
    Bytes own_x(static_cast<size_t>(shape.elements()) * bytes), own_dy = own_x, own_y = own_x,
                                                                own_dx = own_x;
    Bytes own_mean(static_cast<size_t>(shape.rows()) * statistic), own_rstd = own_mean,
                                                                   own_residual = own_mean;
    Bytes own_dweight(static_cast<size_t>(parameter)), own_dbias = own_dweight;
    for (const Element& each : elements) {
      std::memcpy(&own_x[each.own * bytes], &x.memory[each.place_in(x, order) * bytes], bytes);
      std::memcpy(&own_dy[each.own * bytes], &dy.memory[each.place_in(dy, order) * bytes], bytes);
    }
    Problem own = problem;
    own.shape = shape;
    own.members = {};
    own.x = contiguous_array(own_x.data(), shape);
    own.weight = &weight[static_cast<size_t>(member * parameter)];
    own.statistics =
        contiguous_statistics(own_mean.data(), own_rstd.data(), own_residual.data(), shape);
    const Forward forth = {own, &bias[static_cast<size_t>(member * parameter)],
                           contiguous_array(own_y.data(), shape)};
    const Backward back = {own, contiguous_array(own_dy.data(), shape),
                           contiguous_array(own_dx.data(), shape), own_dweight.data(),
                           own_dbias.data()};
    CHECK(forward(forth, kAlone) == Status::ok && backward(back, kAlone) == Status::ok, "memory");

    int other_y = 0, other_dx = 0, other_statistics = 0;
    for (const Element& each : elements) {
      const auto differs = [&](const Bytes& all, size_t at, const Bytes& one, size_t at_one,
                               size_t size) {
        return std::memcmp(&all[at * size], &one[at_one * size], size) != 0;
      };
      other_y += differs(y.memory, each.place_in(y, order), own_y, each.own, bytes);
      other_dx += differs(dx.memory, each.place_in(dx, order), own_dx, each.own, bytes);
      other_statistics += differs(rstd, each.row, own_rstd, each.own_row, statistic);
      if (!problem.centered) continue;
      other_statistics += differs(mean, each.row, own_mean, each.own_row, statistic);
      other_statistics += differs(residual, each.row, own_residual, each.own_row, statistic);
    }
    const auto same = [&](const Bytes& all, const Bytes& one) {
      return std::memcmp(&all[static_cast<size_t>(member * parameter)], one.data(), one.size()) ==
             0;
    };
    CHECK(other_y == 0 && other_dx == 0 && other_statistics == 0 && same(dweight, own_dweight) &&
              same(dbias, own_dbias),
          "member %d of %d, (%d, %d, %d) in %d runs, %s: %d others in y, %d in dx, %d statistics",
          static_cast<int>(member), static_cast<int>(problem.members.count()),
          static_cast<int>(shape.outer), static_cast<int>(shape.cols),
          static_cast<int>(shape.inner), static_cast<int>(problem.shape.runs()),
          format_of(problem.type).name, other_y, other_dx, other_statistics);
  }
};

// Sizes of two to four kept axes before the normalized one, and perhaps one behind.
void test_random_calls(uint64_t seed) {
  Random random(seed);
  int runs = 0, members = 0;
  const int trials = 120 / every();
  for (int trial = 0; trial < trials; ++trial) {
    const Types types = kTypes[random.below(6)];
    const int64_t outer_axes = 2 + random.below(3),
                  inner = random.below(3) == 0 ? 2 + random.below(70) : 1;
    int64_t sizes[kMostAxes], strides[kMostAxes], count = outer_axes;
    Axes axes;
    for (int64_t axis = 0; axis < outer_axes; ++axis) {
      sizes[axis] = 1 + random.below(axis == trial % outer_axes ? 30 : 4);
      axes.varying[axis] = random.below(3) == 0;
    }
    axes.normalized[count] = true;
    sizes[count++] = 1 + random.below(inner > 1 ? 20 : 100);
    if (inner > 1) sizes[count++] = inner;
    axes.count = count;
    contiguous_strides(count, sizes, strides);
    Order order;
    CHECK(keep_order(axes, sizes, &order), "the order");
    Problem problem = {};
    problem.type = types.type;
    problem.parameter_type = types.parameter_type;
    problem.centered = random.coin();
    problem.zero_centered_weight = random.below(3) == 0;
    problem.eps = 1e-5;
    int64_t vectors = 1;
    for (int64_t axis = 0; axis < outer_axes; ++axis)
      if (axes.varying[axis]) vectors *= sizes[axis];
    Call call(order, problem, vectors * sizes[outer_axes], axes.rows(sizes), random);
    call.run(random.coin() ? kAlone : pool_threads(3));
    call.check();
    runs += !call.problem.shape.is_one_run();
    members += vectors > 1;
  }
  CHECK(runs > trials / 6 && members > trials / 6, "%d in several runs, %d of several members",
        runs, members);
}

// Runs of two rows, six of them side by side: batches of eight rows begin alike, but some go on
// among the next six.
void test_batches_among_runs(uint64_t seed) {
  Random random(seed);
  for (int trial = 0; trial < 16; ++trial) {
    const int64_t sizes[] = {5, 6, 2, 40};
    Axes axes;
    axes.count = 4;
    axes.normalized[3] = true;
    Order order;
    CHECK(keep_order(axes, sizes, &order), "the order");
    Problem problem = {};
    problem.centered = trial % 2 == 0;
    problem.eps = 1e-5;
    Call call(order, problem, 40, 60, random);
    call.run(kAlone);
    call.check();
  }
}

// Enough of them that each gets a thread, and few large ones, which share the threads.
void test_threads(uint64_t seed) {
  Random random(seed);
  for (const int64_t vectors : {2, 40}) {
    const int64_t sizes[] = {vectors, 4000 / vectors, 130};
    Axes axes;
    axes.count = 3;
    axes.varying[0] = axes.normalized[2] = true;
    Order order;
    CHECK(keep_order(axes, sizes, &order), "the order");
    Problem problem = {};
    problem.centered = true;
    problem.eps = 1e-5;
    Call call(order, problem, vectors * 130, vectors * sizes[1], random);
    call.run(pool_threads(3));
    call.check();
  }
}

}  // namespace

int main() {
  test_random_calls(1);
  test_threads(2);
  test_batches_among_runs(3);
  return finish();
}
