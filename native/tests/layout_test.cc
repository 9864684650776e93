// Axes collapsed to (outer, cols, inner): every element stands where the collapsed array says.
#include "layout.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <vector>

#include "check.h"
#include "random.h"

namespace {

using namespace layernorm;
using namespace layernorm::test;
using Values = std::vector<int64_t>;

Axes axes_of(int64_t count, const Values& given) {
  Axes axes;
  const Axes::Mistake mistake = axes.take(count, given.data(), static_cast<int64_t>(given.size()));
  CHECK(mistake == Axes::Mistake::none, "the axes are refused");
  return axes;
}

// A tensor whose axes lie in memory in the order of `permutation`, with gaps.
Values strides_of(const Values& sizes, const Values& permutation, int64_t gap) {
  Values strides(sizes.size());
  int64_t stride = 1;
  for (size_t at = sizes.size(); at-- > 0;) {
    const auto axis = static_cast<size_t>(permutation[at]);
    strides[axis] = stride;
    stride *= sizes[axis];
    if (at == sizes.size() - 1) stride += gap;
  }
  return strides;
}

// Where the kernels find element (member, o, c, i).
int64_t place_of(const Problem& problem, const Array& array, int64_t member, int64_t o, int64_t c,
                 int64_t i) {
  int64_t offset = offset_of(problem.shape, array.strides, o) + c * array.col_stride + i;
  for (int axis = kMemberAxes - 1; axis >= 0; --axis) {
    offset += member % problem.members.sizes[axis] * array.strides.members[axis];
    member /= problem.members.sizes[axis];
  }
  return offset;
}

// Goes through the elements in the order's own sequence.
void check_every_element(const Axes& axes, const Order& order, const Ordered& tensor,
                         const Problem& problem, const Array& array) {
  const Shape& shape = problem.shape;
  for (int64_t element = 0; element < count_elements(order.count, order.sizes); ++element) {
    int64_t rest = element, offset = 0, index[kMostAxes];
    for (int64_t at = order.count - 1; at >= 0; --at) {
      index[at] = rest % order.sizes[at];
      rest /= order.sizes[at];
      offset += index[at] * tensor.strides[at];
    }
    int64_t member = 0, row = 0, col = 0;
    for (int64_t at = 0; at < order.count; ++at) {
      const auto axis = order.axis[at];
      int64_t& part = axes.normalized[axis] ? col : axes.varying[axis] ? member : row;
      part = part * order.sizes[at] + index[at];
    }
    CHECK(offset == place_of(problem, array, member, row / shape.inner, col, row % shape.inner),
          "element %d is in another place", static_cast<int>(element));
  }
}

void test_random_layouts(uint64_t seed) {
  Random random(seed);
  int in_place = 0, moved = 0, copied = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const int64_t count = 1 + random.below(5);
    Values sizes, permutation(static_cast<size_t>(count)), given;
    std::iota(permutation.begin(), permutation.end(), 0);
    for (int64_t axis = 0; axis < count; ++axis) {
      sizes.push_back(1 + random.below(3));
      if (random.coin()) given.push_back(random.coin() ? axis : axis - count);
      if (random.coin())
        std::swap(permutation[static_cast<size_t>(axis)],
                  permutation[static_cast<size_t>(random.below(count))]);
    }
    if (given.empty()) given.push_back(-1);
    Axes axes = axes_of(count, given);
    for (int64_t axis = 0; axis < count; ++axis)
      axes.varying[axis] = !axes.normalized[axis] && random.below(4) == 0;
    const Values strides = strides_of(sizes, permutation, random.coin() ? 0 : 2);
    const Order order = choose_order(axes, sizes.data(), strides.data());
    Ordered tensor, copy;
    order.apply(strides.data(), tensor.strides);
    contiguous_strides(count, order.sizes, copy.strides);
    const bool fits = order.fits(tensor.strides);
    ++(!fits ? copied : order.moves_axes ? moved : in_place);
    Problem problem = {};
    Array array = {}, of_copy = {};
    const Order::Placed both[] = {{&copy, &of_copy}, {&tensor, &array}};
    CHECK(order.place(both, fits ? 2 : 1, problem), "five axes are too many");
    CHECK(problem.members.count() * problem.shape.rows() == axes.rows(sizes.data()), "the rows");
    check_every_element(axes, order, copy, problem, of_copy);
    if (fits) check_every_element(axes, order, tensor, problem, array);
  }
  CHECK(in_place > 500 && moved > 500 && copied > 500, "%d in place, %d moved, %d copied", in_place,
        moved, copied);
}

void test_outer_axes_merge_where_one_stride_steps_through_them() {
  const Values sizes = {2, 3, 4, 5}, contiguous = {60, 20, 5, 1}, with_gaps = {90, 30, 5, 1};
  const auto place = [&](const Values& strides, std::initializer_list<int64_t> varying) {
    Axes axes = axes_of(4, {-1});
    for (const int64_t axis : varying) axes.varying[axis] = true;
    const Order order = choose_order(axes, sizes.data(), strides.data());
    Ordered tensor;
    order.apply(strides.data(), tensor.strides);
    Problem problem = {};
    Array array;
    const Order::Placed placed = {&tensor, &array};
    CHECK(order.place(&placed, 1, problem), "too many axes");
    return problem;
  };
  CHECK(place(contiguous, {}).shape.is_one_run(), "contiguous rows are several runs");
  CHECK(place(with_gaps, {}).shape.runs() == 6, "rows with gaps are one run");
  CHECK(place(contiguous, {2}).shape.is_one_run(), "a member's rows are several runs");
  CHECK(place(contiguous, {2}).members.count() == 4, "members of the last kept axis");
  CHECK(place(contiguous, {0, 2}).members.count() == 8, "members of two axes");
  CHECK(place(contiguous, {0, 1, 2}).shape.rows() == 1, "a row for each member");
}

void test_the_sizes_of_parameters() {
  const Values sizes = {2, 3, 4};
  const auto take = [&](const Values& given, bool (&varying)[3]) {
    Axes axes = axes_of(3, {-1});
    const bool taken =
        axes.take_parameter(sizes.data(), static_cast<int64_t>(given.size()), given.data());
    std::copy_n(axes.varying, 3, varying);
    return taken;
  };
  bool varying[3];
  CHECK(take({4}, varying) && !varying[0] && !varying[1], "the normalized sizes");
  CHECK(take({2, 1, 4}, varying) && varying[0] && !varying[1], "one for each of the first axis");
  CHECK(take({2, 3, 4}, varying) && varying[0] && varying[1], "one for each row");
  CHECK(take({1, 1, 4}, varying) && !varying[0] && !varying[1], "one for all");
  for (const Values& given : {Values{3}, Values{3, 4}, Values{2, 3, 1}, Values{3, 1, 4}})
    CHECK(!take(given, varying), "sizes that do not fit");
}

void test_axes_move_only_where_they_must() {
  const Values sizes = {2, 3, 4}, contiguous = {12, 4, 1}, channels_last = {12, 1, 3};
  const auto order = [&](const Values& given, const Values& strides) {
    return choose_order(axes_of(3, given), sizes.data(), strides.data());
  };
  for (const Values& given : {Values{0}, Values{1}, Values{-1}, Values{1, 2}, Values{0, 1, 2}})
    CHECK(!order(given, contiguous).moves_axes, "neighbors are moved");
  CHECK(order({0, 2}, contiguous).moves_axes, "separated axes are not moved");
  CHECK(order({1}, channels_last).moves_axes, "channels last is copied");
  const Order rows = order({1}, channels_last);
  CHECK(rows.part[rows.count - 1] == Order::cols, "contiguous rows are read as strided ones");
  CHECK(order({1}, {20, 1, 4}).moves_axes, "contiguous rows are strided in the copy");
  CHECK(!order({1}, {24, 4, 2}).moves_axes, "strided rows are contiguous in the copy");
}

void test_sizes_and_strides() {
  const Values sizes = {2, 1, 3}, permuted = {1, 7, 2}, gaps = {4, 0, 1};
  Values strides(3);
  contiguous_strides(3, sizes.data(), strides.data());
  CHECK(strides == (Values{3, 3, 1}), "the strides");
  CHECK(is_contiguous(3, sizes.data(), strides.data()), "contiguous");
  CHECK(!is_contiguous(3, sizes.data(), permuted.data()), "permuted");
  CHECK(!is_contiguous(3, sizes.data(), gaps.data()), "gaps");
  CHECK(is_dense(3, sizes.data(), permuted.data()), "permuted, but dense");
  CHECK(!is_dense(3, sizes.data(), gaps.data()), "gaps");
}

void test_axes_that_are_refused() {
  using Mistake = Axes::Mistake;
  const auto take = [](int64_t count, const Values& given) {
    Axes axes;
    return axes.take(count, given.data(), static_cast<int64_t>(given.size()));
  };
  CHECK(take(3, {-3, 2}) == Mistake::none, "the first and the last");
  CHECK(take(3, {3}) == Mistake::out_of_range, "behind the last");
  CHECK(take(3, {-4}) == Mistake::out_of_range, "before the first");
  CHECK(take(3, {2, -1}) == Mistake::repeated, "twice");
  CHECK(take(kMostAxes + 1, {0}) == Mistake::too_many, "too many");
}

void test_rows_beyond_number() {
  const int64_t large = int64_t{1} << 40;
  for (const Values& sizes : {Values{large, large, 1}, Values{large, large, 0}})
    CHECK(axes_of(3, {2}).rows(sizes.data()) == kMostRows + 1, "rows that overflow");
  CHECK(axes_of(3, {2}).rows(Values{large, 0, 1}.data()) == 0, "no rows");
}

}  // namespace

int main() {
  test_random_layouts(1);
  test_outer_axes_merge_where_one_stride_steps_through_them();
  test_the_sizes_of_parameters();
  test_axes_move_only_where_they_must();
  test_sizes_and_strides();
  test_axes_that_are_refused();
  test_rows_beyond_number();
  return finish();
}
