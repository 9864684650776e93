#include "layout.h"

#include <algorithm>

namespace layernorm {
namespace {

// Neighboring axes of an order: their product, and whether one stride steps through them all.
struct Section {
  int64_t size = 1;
  int64_t stride = 0;  // of the last axis
  bool merges = true;

  void append(int64_t axis_size, int64_t axis_stride) {
    merges = merges && (size == 1 || stride == axis_stride * axis_size);
    size *= axis_size;
    stride = axis_stride;
  }
};

enum Part { kOuter, kCols, kInner };

// False where a kept axis separates normalized ones. Axes of size 1 are ignored.
bool find_shape(const Axes& axes, const int64_t* sizes, Order& order) {
  int64_t size[3] = {1, 1, 1};
  Part part = kOuter;
  bool any_normalized = false;
  for (int64_t at = 0; at < order.count; ++at)
    any_normalized |= sizes[order.axis[at]] != 1 && axes.normalized[order.axis[at]];
  for (int64_t at = 0; at < order.count; ++at) {
    const int64_t axis = order.axis[at];
    // Where all normalized sizes are 1, the first of these axes separates outer from inner.
    if (!any_normalized && part == kOuter && axes.normalized[axis]) part = kInner;
    if (sizes[axis] == 1) continue;
    if (axes.normalized[axis]) {
      if (part == kInner) return false;
      part = kCols;
    } else if (part == kCols) {
      part = kInner;
    }
    size[part] *= sizes[axis];
  }
  order.shape = {size[kOuter], size[kCols], size[kInner]};
  return true;
}

Order own_order(const Axes& axes) {
  Order order;
  for (int64_t axis = 0; axis < axes.count; ++axis) order.axis[order.count++] = axis;
  return order;
}

// Each row by itself, wherever the rows are.
bool has_contiguous_rows(const Axes& axes, const int64_t* sizes, const int64_t* strides) {
  Section row;
  for (int64_t axis = 0; axis < axes.count; ++axis)
    if (axes.normalized[axis] && sizes[axis] != 1) row.append(sizes[axis], strides[axis]);
  return row.merges && row.stride == 1;
}

Order normalized_last(const Axes& axes) {
  Order order;
  order.moves_axes = true;
  for (const bool normalized : {false, true})
    for (int64_t axis = 0; axis < axes.count; ++axis)
      if (axes.normalized[axis] == normalized) order.axis[order.count++] = axis;
  return order;
}

}  // namespace

int64_t count_elements(int64_t axes, const int64_t* sizes) {
  int64_t product = 1;
  for (int64_t axis = 0; axis < axes; ++axis) product *= sizes[axis];
  return product;
}

void contiguous_strides(int64_t axes, const int64_t* sizes, int64_t* strides) {
  int64_t stride = 1;
  for (int64_t axis = axes - 1; axis >= 0; --axis) {
    strides[axis] = stride;
    stride *= std::max(int64_t{1}, sizes[axis]);
  }
}

bool is_contiguous(int64_t axes, const int64_t* sizes, const int64_t* strides) {
  int64_t expected = 1;
  for (int64_t axis = axes - 1; axis >= 0; --axis) {
    if (sizes[axis] != 1 && strides[axis] != expected) return false;
    expected *= sizes[axis];
  }
  return true;
}

bool is_dense(int64_t axes, const int64_t* sizes, const int64_t* strides) {
  int64_t sorted[kMostAxes], count = 0;
  for (int64_t axis = 0; axis < axes; ++axis)
    if (sizes[axis] != 1) sorted[count++] = axis;
  std::sort(sorted, sorted + count,
            [strides](int64_t a, int64_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (int64_t at = 0; at < count; ++at) {
    if (strides[sorted[at]] != expected) return false;
    expected *= sizes[sorted[at]];
  }
  return true;
}

Axes::Mistake Axes::take(int64_t axes, const int64_t* given, int64_t given_count) {
  if (axes > kMostAxes) return Mistake::too_many;
  count = axes;
  for (int64_t at = 0; at < given_count; ++at) {
    const int64_t axis = given[at] < 0 ? given[at] + axes : given[at];
    if (axis < 0 || axis >= axes) return Mistake::out_of_range;
    if (normalized[axis]) return Mistake::repeated;
    normalized[axis] = true;
  }
  return Mistake::none;
}

int64_t Axes::rows(const int64_t* sizes) const {
  int64_t product = 1;
  for (int64_t axis = 0; axis < count; ++axis) {
    if (normalized[axis]) continue;
    const bool too_many = sizes[axis] > 0 && product > kMostRows / sizes[axis];
    product = too_many ? kMostRows + 1 : product * sizes[axis];
  }
  return product;
}

int64_t Axes::normalized_sizes(const int64_t* sizes, int64_t* normalized_sizes) const {
  int64_t found = 0;
  for (int64_t axis = 0; axis < count; ++axis)
    if (normalized[axis]) normalized_sizes[found++] = sizes[axis];
  return found;
}

bool Order::collapse(const int64_t* sizes, const int64_t* strides, Array* array) const {
  Section outer, cols, inner;
  int64_t taken = 1;
  Section* section = &outer;
  for (int64_t at = 0; at < count; ++at) {
    const int64_t size = sizes[axis[at]];
    if (size == 1) continue;
    // All sizes are larger than 1, so the shape tells where each section ends.
    if (section == &outer && taken == shape.outer) section = &cols, taken = 1;
    if (section == &cols && taken == shape.cols) section = &inner, taken = 1;
    section->append(size, strides[axis[at]]);
    taken *= size;
  }
  if (!outer.merges || !cols.merges || !inner.merges) return false;
  if (shape.outer > 1 && outer.stride <= 0) return false;
  if (shape.cols > 1 && cols.stride <= 0) return false;
  if (shape.inner > 1 ? inner.stride != 1 : shape.cols > 1 && cols.stride != 1) return false;
  array->outer_stride = shape.outer > 1 ? outer.stride : shape.cols * shape.inner;
  array->col_stride = shape.cols > 1 ? cols.stride : shape.inner;
  return true;
}

void Order::apply(const int64_t* values, int64_t* ordered) const {
  for (int64_t at = 0; at < count; ++at) ordered[at] = values[axis[at]];
}

Order choose_order(const Axes& axes, const int64_t* sizes, const int64_t* strides) {
  Order own = own_order(axes), last = normalized_last(axes);
  find_shape(axes, sizes, last);
  Array array;
  const bool separated = !find_shape(axes, sizes, own);
  if (separated) return last;
  // A sample alone may need no copy where a batch does, but is to get the same bits. So the order
  // follows from what they have in common.
  if (own.shape.cols == 1 || own.collapse(sizes, strides, &array)) return own;
  if (last.collapse(sizes, strides, &array)) return last;
  return has_contiguous_rows(axes, sizes, strides) ? last : own;
}

}  // namespace layernorm
