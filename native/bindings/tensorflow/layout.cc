#include "layout.h"

#include <initializer_list>

namespace layernorm::tensorflow {
namespace {

template <class Move>
void walk(const Sizes& sizes, const int64_t* strides, const Move& move) {
  int64_t at[kMostAxes] = {}, offset = 0;
  const int64_t elements = sizes.elements();
  for (int64_t index = 0; index < elements; ++index) {
    move(offset, index);
    for (int axis = sizes.count - 1; axis >= 0; --axis) {
      offset += strides[axis];
      if (++at[axis] < sizes.size[axis]) break;
      offset -= strides[axis] * sizes.size[axis];
      at[axis] = 0;
    }
  }
}

template <class Word>
void gather_words(const Sizes& sizes, const int64_t* strides, const void* from, void* to) {
  const Word* tensor = static_cast<const Word*>(from);
  Word* copy = static_cast<Word*>(to);
  walk(sizes, strides, [=](int64_t offset, int64_t index) { copy[index] = tensor[offset]; });
}

template <class Word>
void scatter_words(const Sizes& sizes, const int64_t* strides, const void* from, void* to) {
  const Word* copy = static_cast<const Word*>(from);
  Word* tensor = static_cast<Word*>(to);
  walk(sizes, strides, [=](int64_t offset, int64_t index) { tensor[offset] = copy[index]; });
}

}  // namespace

int64_t Sizes::elements() const {
  int64_t product = 1;
  for (int at = 0; at < count; ++at) product *= size[at];
  return product;
}

bool Layout::find(const Sizes& x, const int64_t* axis, int count) {
  bool is_normalized[kMostAxes] = {};
  for (int at = 0; at < count; ++at) {
    const int64_t each = axis[at] < 0 ? axis[at] + x.count : axis[at];
    if (each < 0 || each >= x.count || is_normalized[each]) return false;
    is_normalized[each] = true;
  }
  for (int at = 0; at < x.count; ++at) {
    const int64_t size = x.size[at];
    if (is_normalized[at])
      normalized_.size[normalized_.count++] = size;
    else
      rows_ = size > 0 && rows_ > kMostRows / size ? kMostRows + 1 : rows_ * size;
  }
  if (x.elements() == 0) return true;
  // Axes of size 1 are of no account, unless all normalized ones are: then they part outer and
  // inner.
  bool any = false;
  for (int at = 0; at < x.count; ++at) any |= is_normalized[at] && x.size[at] != 1;
  int64_t part[3] = {1, 1, 1};
  int section = 0;
  for (int at = 0; at < x.count; ++at) {
    if (is_normalized[at] && !any) section = 2;
    if (x.size[at] == 1) continue;
    if (is_normalized[at]) {
      needs_copy_ |= section == 2;
      section = 1;
    } else if (section == 1) {
      section = 2;
    }
    part[section] *= x.size[at];
  }
  shape_ = {part[0], part[1], part[2]};
  if (!needs_copy_) return true;
  shape_ = {rows_, normalized_.elements(), 1};
  int64_t stride[kMostAxes], product = 1;
  for (int at = x.count - 1; at >= 0; --at) {
    stride[at] = product;
    product *= x.size[at];
  }
  for (const bool last : {false, true})
    for (int at = 0; at < x.count; ++at)
      if (is_normalized[at] == last) {
        strides_[ordered_.count] = stride[at];
        ordered_.size[ordered_.count++] = x.size[at];
      }
  return true;
}

void Layout::gather(const void* tensor, void* copy, int64_t element_bytes) const {
  const auto words = element_bytes == 2   ? gather_words<int16_t>
                     : element_bytes == 4 ? gather_words<int32_t>
                                          : gather_words<int64_t>;
  words(ordered_, strides_, tensor, copy);
}

void Layout::scatter(const void* copy, void* tensor, int64_t element_bytes) const {
  const auto words = element_bytes == 2   ? scatter_words<int16_t>
                     : element_bytes == 4 ? scatter_words<int32_t>
                                          : scatter_words<int64_t>;
  words(ordered_, strides_, copy, tensor);
}

}  // namespace layernorm::tensorflow
