#include "collapsed.h"

#include <new>

namespace layernorm::tensorflow {
namespace {

// Calls move(offset in the tensor, index in the copy) for each element.
template <class Move>
void for_each_element(const Layout& layout, const Move& move) {
  const int64_t* sizes = layout.order.sizes;
  int64_t tensor_strides[kMostAxes], strides[kMostAxes];
  contiguous_strides(layout.sizes.count, layout.sizes.size, tensor_strides);
  for (int axis = 0; axis < layout.sizes.count; ++axis)
    if (layout.sizes.size[axis] == 1) tensor_strides[axis] = 0;
  layout.order.apply(tensor_strides, strides);
  int64_t at[kMostAxes] = {}, offset = 0;
  const int64_t elements = count_elements(layout.order.count, sizes);
  for (int64_t index = 0; index < elements; ++index) {
    move(offset, index);
    for (int64_t axis = layout.order.count - 1; axis >= 0; --axis) {
      offset += strides[axis];
      if (++at[axis] < sizes[axis]) break;
      offset -= strides[axis] * sizes[axis];
      at[axis] = 0;
    }
  }
}

template <class Word>
void gather(const Layout& layout, const void* from, void* to) {
  const Word* tensor = static_cast<const Word*>(from);
  Word* copy = static_cast<Word*>(to);
  for_each_element(layout, [=](int64_t offset, int64_t index) { copy[index] = tensor[offset]; });
}

template <class Word>
void scatter(const Layout& layout, const void* from, void* to) {
  const Word* copy = static_cast<const Word*>(from);
  Word* tensor = static_cast<Word*>(to);
  for_each_element(layout, [=](int64_t offset, int64_t index) { tensor[offset] = copy[index]; });
}

}  // namespace

Collapsed Collapsed::to_read(const Layout& layout, const void* data, int64_t element_bytes) {
  Collapsed result = to_write(layout, const_cast<void*>(data), element_bytes);  // only read
  if (!result.copy_) return result;
  const auto move = element_bytes == 2   ? gather<int16_t>
                    : element_bytes == 4 ? gather<int32_t>
                                         : gather<int64_t>;
  move(layout, data, result.copy_.get());
  return result;
}

Collapsed Collapsed::to_write(const Layout& layout, void* data, int64_t element_bytes) {
  Collapsed result;
  result.data_ = data;
  result.element_bytes_ = element_bytes;
  if (layout.copies) {
    const int64_t elements = count_elements(layout.order.count, layout.order.sizes);
    const auto bytes = static_cast<size_t>(elements * element_bytes);
    result.copy_.reset(new (std::nothrow) char[bytes]);
    result.failed_ = !result.copy_;
  }
  return result;
}

Ordered Collapsed::ordered(const Layout& layout) const {
  Ordered result;
  result.data = data();
  contiguous_strides(layout.order.count, layout.order.sizes, result.strides);
  return result;
}

void Collapsed::flush(const Layout& layout) const {
  if (!copy_) return;
  const auto move = element_bytes_ == 1   ? scatter<int8_t>
                    : element_bytes_ == 2 ? scatter<int16_t>
                    : element_bytes_ == 4 ? scatter<int32_t>
                                          : scatter<int64_t>;
  move(layout, copy_.get(), data_);
}

}  // namespace layernorm::tensorflow
