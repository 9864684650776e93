// How a row's kernel goes over its columns: in packs, over wide rows in blocks, and over wider ones
// in parts.
#pragma once

// Runs a row's kernel over columns [begin, end); a pack starts at begin.
template <bool streamed, class Stored, class Row>
LAYERNORM_INLINE void walk_columns(Row& row, int64_t begin, int64_t end) {
  constexpr int64_t size = pack_size<Stored>, W = lanes<Compute<Stored>>;
  int64_t col = begin;
  for (; col + 2 * size <= end; col += 2 * size) {
    row.template pack<streamed>(col);
    row.template pack<streamed>(col + size);
  }
  for (; col + size <= end; col += size) row.template pack<streamed>(col);
  for (; col < end; col += W) row.tail(col, std::min(W, end - col));
}

// Wide rows, whose arrays do not fit the first-level cache, are worked on in blocks of columns: for
// each block all rows of a batch, so that what they share, the parameters, stays in that cache. The
// batch stays in the second-level cache.
constexpr int64_t kWideBytes = 8 * 1024;
constexpr int64_t kWideBatchRows = 8;
constexpr int64_t kWideBatchBytes = 128 * 1024;
static_assert(kBlockCols % (2 * pack_size<bfloat16>) == 0, "whole packs");

inline int64_t rows_per_wide_batch(int64_t row_bytes) {
  int64_t rows = kWideBatchRows;
  while (rows > 1 && rows * row_bytes > kWideBatchBytes) rows /= 2;
  return rows;
}

// The rows of a batch, wherever they are.
template <class Stored>
struct RowsOf {
  Stored* data;
  const int64_t* offsets;

  Stored* operator[](int64_t at) const { return data + offsets[at]; }
};

// Where the rows of a batch are in an array, in elements from the array's first.
template <int64_t most>
class RowOffsets {
 public:
  RowOffsets(const Shape& shape, const Strides& strides)
      : shape_(shape),
        strides_(strides),
        has_one_stride_(shape.is_one_run() || has_one_stride()),
        run_(has_one_stride_ ? shape.outer : shape.outer / shape.runs()) {
    offsets_[0] = 0;
  }

  int64_t operator()(int64_t row) const { return base_ + offsets_[row - first_]; }
  // The distance from each row to that to prefetch; 0: do not.
  int64_t ahead() const { return ahead_; }
  bool are_neighbors() const { return has_one_stride_ && strides_.outer == 1; }

  template <class Stored>
  RowsOf<Stored> rows_of(const Array& array) const {
    return {static_cast<Stored*>(array.data) + base_, offsets_};
  }

  // To rows [first, first + count).
  void move(int64_t first, int64_t count, int64_t rows_ahead) {
    first_ = first;
    if (!has_one_stride_) return move_among_runs(count, rows_ahead);
    if (count > known_) learn(count);
    base_ = first * strides_.outer;
    ahead_ = rows_ahead * strides_.outer;
  }

 private:
  __attribute__((noinline)) void learn(int64_t count) {
    for (; known_ < count; ++known_) offsets_[known_] = known_ * strides_.outer;
  }
  // Runs may follow each other as their rows do, in this array.
  __attribute__((noinline)) bool has_one_stride() const {
    int64_t expected = shape_.outer / shape_.runs() * strides_.outer;
    for (int axis = kAround - 1; axis >= 0; --axis) {
      if (shape_.around[axis] != 1 && strides_.around[axis] != expected) return false;
      expected *= shape_.around[axis];
    }
    return true;
  }
  __attribute__((noinline)) void move_among_runs(int64_t count, int64_t rows_ahead) {
    const Place place = place_of(shape_, run_, first_);
    base_ = offset_of(strides_, place);
    // Most batches lie among the runs as the last one did, but for the first on the axes further out.
    constexpr int inner = kAround - 1;
    const int64_t on_inner = place.around[inner] * run_ + place.in_run;
    const bool stays = on_inner + std::max(count, rows_ahead + 1) <= shape_.around[inner] * run_;
    if (stays && place.in_run == in_run_ && count == known_ && rows_ahead == rows_ahead_) return;
    in_run_ = stays ? place.in_run : -1;
    known_ = count;
    rows_ahead_ = rows_ahead;
    for (int64_t at = 0; at < count;) {
      const Place here = place_of(shape_, run_, first_ + at);
      const int64_t end = std::min(count, at + run_ - here.in_run);
      int64_t offset = offset_of(strides_, here) - base_;
      for (; at < end; ++at, offset += strides_.outer) offsets_[at] = offset;
    }
    ahead_ = 0;
    if (rows_ahead != 0)
      ahead_ = offset_of(strides_, place_of(shape_, run_, first_ + rows_ahead)) - base_;
  }

  const Shape& shape_;
  const Strides& strides_;
  const bool has_one_stride_;
  const int64_t run_;
  int64_t first_, base_, ahead_ = 0;
  int64_t known_ = 1;  // of offsets_
  // Among runs: where in its run the last batch began, or -1, and how far ahead it looked.
  int64_t in_run_ = -1, rows_ahead_;
  int64_t offsets_[most];  // from base_
};

// The parts of a row's columns; see kPartCols.
struct Parts {
  int64_t cols;
  const Threads* threads;  // share the parts; null: do not
  int64_t size = part_cols(cols);
  int64_t count = cols <= size ? 1 : (cols + size - 1) / size;

  // Calls f(part, begin, end) for columns [begin, end) of each part. f should be short: it is
  // compiled twice, once for a row of one part.
  template <class F>
  LAYERNORM_INLINE void each(const F& f) const {
    if (count == 1) return f(0, 0, cols);
    each_of_several({[](const void* context, int64_t part, int64_t begin, int64_t end) {
                       (*static_cast<const F*>(context))(part, begin, end);
                     },
                     &f});
  }

 private:
  struct Call {
    void (*function)(const void* context, int64_t part, int64_t begin, int64_t end);
    const void* context;
  };
  void some(const Call& call, int64_t part, int64_t last) const {
    for (; part < last; ++part)
      call.function(call.context, part, part * size, std::min(cols, (part + 1) * size));
  }
  __attribute__((noinline)) void each_of_several(const Call& call) const {
    if (!threads) return some(call, 0, count);
    std::pair<const Parts*, const Call*> all = {this, &call};
    threads->run(
        threads->pool, count,
        [](void* context, int64_t begin, int64_t end) {
          const auto& [parts, of_parts] = *static_cast<decltype(all)*>(context);
          parts->some(*of_parts, begin, end);
          finish_streaming();
        },
        &all);
  }
};
static_assert(kPartCols % kBlockCols == 0, "whole blocks");
