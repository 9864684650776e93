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

// False where a kept axis separates normalized ones, or parameters vary along one behind them. Axes
// of size 1 are ignored.
bool find_parts(const Axes& axes, const int64_t* sizes, Order& order) {
  Order::Part part = Order::outer;
  bool any_normalized = false;
  for (int64_t at = 0; at < order.count; ++at)
    any_normalized |= sizes[order.axis[at]] != 1 && axes.normalized[order.axis[at]];
  for (int64_t at = 0; at < order.count; ++at) {
    const int64_t axis = order.axis[at];
    order.sizes[at] = sizes[axis];
    order.part[at] = Order::none;
    order.varies[at] = axes.varying[axis] && !axes.normalized[axis];
    // Where all normalized sizes are 1, the first of these axes separates outer from inner.
    if (!any_normalized && part == Order::outer && axes.normalized[axis]) part = Order::inner;
    if (sizes[axis] == 1) continue;
    if (axes.normalized[axis]) {
      if (part == Order::inner) return false;
      part = Order::cols;
    } else if (part == Order::cols) {
      part = Order::inner;
    }
    if (part == Order::inner && order.varies[at]) return false;
    order.part[at] = part;
  }
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
  return row.merges && (row.size == 1 || row.stride == 1);
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

bool Axes::take_parameter(const int64_t* sizes, int64_t parameter_count,
                          const int64_t* parameter_sizes) {
  int64_t normal[kMostAxes];
  const int64_t normal_count = normalized_sizes(sizes, normal);
  if (parameter_count == normal_count)
    return std::equal(normal, normal + normal_count, parameter_sizes);
  if (parameter_count != count) return false;
  for (int64_t axis = 0; axis < count; ++axis) {
    if (parameter_sizes[axis] == sizes[axis]) {
      if (!normalized[axis] && sizes[axis] != 1) varying[axis] = true;
    } else if (normalized[axis] || parameter_sizes[axis] != 1) {
      return false;
    }
  }
  return true;
}

bool Order::is_contiguous(const int64_t* strides) const {
  return layernorm::is_contiguous(count, sizes, strides);
}

bool Order::fits(const int64_t* strides, bool with_outer) const {
  Section sections[3];
  for (int64_t at = 0; at < count; ++at) {
    if (part[at] == none || (part[at] == outer && !with_outer)) continue;
    if (strides[at] <= 0) return false;
    sections[part[at]].append(sizes[at], strides[at]);
  }
  const Section &of_cols = sections[cols], &of_inner = sections[inner];
  return of_cols.merges && of_inner.merges &&
         (of_inner.size > 1 ? of_inner.stride == 1 : of_cols.size == 1 || of_cols.stride == 1);
}

void Order::apply(const int64_t* values, int64_t* ordered) const {
  for (int64_t at = 0; at < count; ++at) ordered[at] = values[axis[at]];
}

namespace {

// An outer axis, or neighboring ones that merge, with the stride of each tensor and, last, of the
// statistics.
struct OuterAxis {
  int64_t size = 1;
  int64_t strides[kMostTensors + 1] = {};
};

template <int most>
struct OuterAxes {
  int count = 0;
  OuterAxis axis[most];

  bool append(const OuterAxis& next, int tensor_count) {
    OuterAxis* last = count > 0 ? &axis[count - 1] : nullptr;
    bool merges = last != nullptr;
    for (int each = 0; merges && each <= tensor_count; ++each)
      merges = last->strides[each] == next.strides[each] * next.size;
    if (!merges && count == most) return false;
    if (!merges) last = &axis[count++];
    const int64_t size = last->size * next.size;
    *last = next;
    last->size = size;
    return true;
  }
};

}  // namespace

bool Order::place(const Placed* tensors, int tensor_count, Problem& problem) const {
  int64_t size[3] = {1, 1, 1};
  for (int64_t at = 0; at < count; ++at)
    if (part[at] != none) size[part[at]] *= sizes[at];
  OuterAxes<kAround + 1> rows;
  OuterAxes<kMemberAxes> members;
  int64_t behind = size[outer] * size[inner];  // rows that one step along the axis passes
  for (int64_t at = 0; at < count; ++at) {
    if (part[at] != outer) continue;
    behind /= sizes[at];
    OuterAxis next;
    next.size = sizes[at];
    for (int each = 0; each < tensor_count; ++each)
      next.strides[each] = tensors[each].tensor->strides[at];
    next.strides[tensor_count] = behind;
    if (!(varies[at] ? members.append(next, tensor_count) : rows.append(next, tensor_count)))
      return false;
  }

  Shape& shape = problem.shape = {1, size[cols], size[inner]};
  problem.members = {};
  const int first_around = kAround - (rows.count - 1), first_member = kMemberAxes - members.count;
  for (int at = 0; at < rows.count; ++at) {
    shape.outer *= rows.axis[at].size;
    if (at + 1 < rows.count) shape.around[first_around + at] = rows.axis[at].size;
  }
  for (int at = 0; at < members.count; ++at)
    problem.members.sizes[first_member + at] = members.axis[at].size;
  const auto strides_of = [&](int each, int64_t of_row) {
    Strides strides = {rows.count > 0 ? rows.axis[rows.count - 1].strides[each] : of_row};
    for (int at = 0; at + 1 < rows.count; ++at)
      strides.around[first_around + at] = rows.axis[at].strides[each];
    for (int at = 0; at < members.count; ++at)
      strides.members[first_member + at] = members.axis[at].strides[each];
    return strides;
  };
  for (int each = 0; each < tensor_count; ++each) {
    const Ordered& tensor = *tensors[each].tensor;
    Array& array = *tensors[each].array = {tensor.data, strides_of(each, shape.cols * shape.inner),
                                           shape.inner};
    for (int64_t at = 0; at < count; ++at)
      if (part[at] == cols) array.col_stride = tensor.strides[at];
  }
  problem.statistics.strides = strides_of(tensor_count, shape.inner);
  return true;
}

bool keep_order(const Axes& axes, const int64_t* sizes, Order* order) {
  *order = own_order(axes);
  return find_parts(axes, sizes, *order);
}

Order choose_order(const Axes& axes, const int64_t* sizes, const int64_t* strides) {
  Order own, last = normalized_last(axes);
  find_parts(axes, sizes, last);
  if (!keep_order(axes, sizes, &own)) return last;
  // A sample alone may need no copy where a batch does, but is to get the same bits. So the order
  // follows from what they have in common.
  int64_t ordered[kMostAxes];
  last.apply(strides, ordered);
  if (own.fits(strides)) return own;
  if (last.fits(ordered)) return last;
  return has_contiguous_rows(axes, sizes, strides) && !own.fits(strides, false) ? last : own;
}

}  // namespace layernorm
