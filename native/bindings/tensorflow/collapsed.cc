#include "collapsed.h"

#include <new>

namespace layernorm::tensorflow {
namespace {

// Calls move(offset in the tensor, index in the copy) for each element.
template <class Move>
void for_each_element(const Layout& layout, const Move& move) {
  int64_t sizes[kMostAxes], tensor_strides[kMostAxes], strides[kMostAxes];
  contiguous_strides(layout.sizes.count, layout.sizes.size, tensor_strides);
  layout.order.apply(layout.sizes.size, sizes);
  layout.order.apply(tensor_strides, strides);
  int64_t at[kMostAxes] = {}, offset = 0;
  const int64_t elements = layout.sizes.elements();
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

Collapsed Collapsed::to_read(const Layout& layout, const void* data, DataType type) {
  Collapsed result = to_write(layout, const_cast<void*>(data), type);  // the kernels only read it
  if (!result.copy_) return result;
  const auto move = size_of(type) == 2   ? gather<int16_t>
                    : size_of(type) == 4 ? gather<int32_t>
                                         : gather<int64_t>;
  move(layout, data, result.copy_.get());
  return result;
}

Collapsed Collapsed::to_write(const Layout& layout, void* data, DataType type) {
  Collapsed result;
  result.data_ = data;
  result.type_ = type;
  if (layout.order.moves_axes) {
    const auto bytes = static_cast<size_t>(layout.sizes.elements() * size_of(type));
    result.copy_.reset(new (std::nothrow) char[bytes]);
    result.failed_ = !result.copy_;
  }
  return result;
}

void Collapsed::flush(const Layout& layout) const {
  if (!copy_) return;
  const auto move = size_of(type_) == 2   ? scatter<int16_t>
                    : size_of(type_) == 4 ? scatter<int32_t>
                                          : scatter<int64_t>;
  move(layout, copy_.get(), data_);
}

}  // namespace layernorm::tensorflow
