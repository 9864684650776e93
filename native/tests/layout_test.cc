// Axes collapsed to (outer, cols, inner): every element stands where the collapsed array says.
#include "layout.h"

#include <algorithm>
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

// Goes through the elements in the order's own sequence.
void check_every_element(const Axes& axes, const Order& order, const Values& sizes,
                         const Values& strides, const Array& array) {
  Values index(sizes.size());
  const Shape& shape = order.shape;
  for (int64_t element = 0; element < count_elements(axes.count, sizes.data()); ++element) {
    int64_t rest = element, offset = 0, col = 0, cols = 1;
    for (int64_t at = order.count - 1; at >= 0; --at) {
      const auto axis = static_cast<size_t>(order.axis[at]);
      const int64_t position = rest % sizes[axis];
      rest /= sizes[axis];
      offset += position * strides[axis];
      if (!axes.normalized[axis]) continue;
      col += position * cols;
      cols *= sizes[axis];
    }
    const int64_t o = element / (shape.cols * shape.inner), c = element / shape.inner % shape.cols,
                  i = element % shape.inner;
    CHECK(cols == shape.cols && col == c, "element %d is in another column",
          static_cast<int>(element));
    CHECK(offset == o * array.outer_stride + c * array.col_stride + i,
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
    const Axes axes = axes_of(count, given);
    const Values strides = strides_of(sizes, permutation, random.coin() ? 0 : 2);
    const Order order = choose_order(axes, sizes.data(), strides.data());
    CHECK(order.shape.outer * order.shape.inner == axes.rows(sizes.data()), "the rows");
    Array array = {};
    const bool collapses = order.collapse(sizes.data(), strides.data(), &array);
    if (collapses) check_every_element(axes, order, sizes, strides, array);
    ++(!collapses ? copied : order.moves_axes ? moved : in_place);
    // The copy that is made otherwise is contiguous in the order.
    Values ordered_sizes(sizes.size()), ordered_strides(sizes.size()), copy(sizes.size());
    order.apply(sizes.data(), ordered_sizes.data());
    contiguous_strides(count, ordered_sizes.data(), ordered_strides.data());
    for (size_t at = 0; at < sizes.size(); ++at)
      copy[static_cast<size_t>(order.axis[at])] = ordered_strides[at];
    check_every_element(axes, order, sizes, copy, contiguous_array(nullptr, order.shape));
  }
  CHECK(in_place > 500 && moved > 500 && copied > 500, "%d in place, %d moved, %d copied", in_place,
        moved, copied);
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
  CHECK(order({1}, channels_last).shape.inner == 1, "contiguous rows are read as strided ones");
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
  test_axes_move_only_where_they_must();
  test_sizes_and_strides();
  test_axes_that_are_refused();
  test_rows_beyond_number();
  return finish();
}
