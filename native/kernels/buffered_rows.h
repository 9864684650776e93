// Passes over a batch of rows before and after its norm, which is computed in a buffer that stays in
// the cache: for what stands beside a norm, gated.h and quantized.h.
#pragma once

void forward_units(const ForwardTask& task, int64_t begin, int64_t end);
void backward_blocks(const BackwardTask& task, int64_t begin, int64_t end);
void reduce_strips(const BackwardTask& task, int64_t begin, int64_t end);

// How a pass reads and writes: vectors, or the first elements of one.
struct Whole {
  template <class T>
  Vector<Compute<T>> read(const T* from) const {
    return load(from);
  }
  template <class T>
  void write(T* to, Vector<Compute<T>> v, bool streamed) const {
    if (streamed)
      stream(to, v);
    else
      store(to, v);
  }
  template <class Bits>
  void write_low_bytes(uint8_t* to, Bits bits) const {
    const auto bytes = low_bytes(bits);
    std::memcpy(to, &bytes, sizeof(bytes));
  }
};
struct First {
  int64_t count;
  template <class T>
  Vector<Compute<T>> read(const T* from) const {
    return load_first(from, count);
  }
  template <class T>
  void write(T* to, Vector<Compute<T>> v, bool) const {
    store_first(to, v, count);
  }
  template <class Bits>
  void write_low_bytes(uint8_t* to, Bits bits) const {
    const auto bytes = low_bytes(bits);
    std::memcpy(to, &bytes, static_cast<size_t>(count));
  }
};

// Calls f(elements, at) for `count` elements, a vector at a time.
template <class C, class F>
LAYERNORM_INLINE void each_vector(int64_t count, const F& f) {
  int64_t at = 0;
  for (; at + lanes<C> <= count; at += lanes<C>) f(Whole{}, at);
  if (at < count) f(First{count - at}, at);
}

template <class From, class To>
__attribute__((noinline)) void convert(const From* from, To* to, int64_t count, bool streamed) {
  each_vector<Compute<From>>(count, [&](const auto& elements, int64_t at) {
    elements.write(to + at, elements.read(from + at), streamed);
  });
}

// Neighboring elements: of a row, or of a column of a tile.
struct Span {
  const Shape& shape;
  int64_t outer, inner, col;
  int64_t at;  // in a buffer
  int64_t count;

  template <class T>
  T* of(const Array& array) const {
    return array.data ? static_cast<T*>(array.data) + offset_in(array) : nullptr;
  }

 private:
  __attribute__((noinline)) int64_t offset_in(const Array& array) const {
    return offset_of(shape, array.strides, outer) + inner + col * array.col_stride;
  }
};

// The rows of a batch, or of a tile, whose norm is computed in a buffer.
class BufferedRows {
 public:
  BufferedRows(const Problem& problem, const Threads* threads, size_t element_bytes)
      : problem_(problem),
        parts_{problem.shape.cols, threads},
        element_bytes_(static_cast<int64_t>(element_bytes)) {}

  bool are_contiguous() const { return problem_.shape.inner == 1; }
  int64_t elements(int64_t rows) const {
    return problem_.shape.cols * (are_contiguous() ? rows : kTileRows);
  }

  // To units [first, first + count); of tiles, to one.
  void move_to(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    if (are_contiguous()) return;
    const int64_t inner = problem_.shape.inner, tiles = (inner + kTileRows - 1) / kTileRows;
    outer_ = first / tiles;
    inner_ = first % tiles * kTileRows;
    rows_ = std::min(kTileRows, inner - inner_);
  }

  // The buffer as an array of the problem's shape, of which these rows alone are there.
  Array in_buffer(void* buffer) const {
    if (!are_contiguous()) return {moved(buffer, -inner_), {}, kTileRows};
    const Shape& shape = problem_.shape;
    Array array = {moved(buffer, -first_ * shape.cols), {shape.cols}, 1};
    int64_t stride = shape.outer / shape.runs() * shape.cols;
    for (int axis = kAround - 1; axis >= 0; --axis) {
      array.strides.around[axis] = stride;
      stride *= shape.around[axis];
    }
    return array;
  }

  // How many rows there are, and where one's statistics are.
  int64_t count() const { return are_contiguous() ? count_ : rows_; }
  int64_t offset(int64_t row, const Strides& statistics) const {
    return are_contiguous() ? offset_of(problem_.shape, statistics, first_ + row)
                            : offset_of(problem_.shape, statistics, outer_) + inner_ + row;
  }

  // Calls f(span) for all spans of columns [begin, end), or of all columns, on the threads.
  template <class F>
  void each_span(int64_t begin, int64_t end, const F& f) const {
    each_span(begin, end, Call::of(f));
  }
  template <class F>
  void each_span(const F& f) const {
    each_span_of_parts(Call::of(f));
  }

 private:
  // A function of a span. Not a template argument of what calls it, of which there is one copy so.
  struct Call {
    void (*function)(const void* context, const Span& span);
    const void* context;

    template <class F>
    static Call of(const F& f) {
      return {
          [](const void* context, const Span& span) { (*static_cast<const F*>(context))(span); },
          &f};
    }
  };
  __attribute__((noinline)) void each_span(int64_t begin, int64_t end, const Call& call) const {
    const Shape& shape = problem_.shape;
    if (are_contiguous()) {
      for (int64_t k = 0; k < count_; ++k)
        call.function(call.context,
                      {shape, first_ + k, 0, begin, k * shape.cols + begin, end - begin});
    } else {
      for (int64_t col = begin; col < end; ++col)
        call.function(call.context, {shape, outer_, inner_, col, col * kTileRows, rows_});
    }
  }
  __attribute__((noinline)) void each_span_of_parts(const Call& call) const {
    parts_.each([&](int64_t, int64_t begin, int64_t end) { each_span(begin, end, call); });
  }

  // As an integer: the array's first element may lie far outside the buffer.
  void* moved(void* buffer, int64_t elements) const {
    return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(buffer) +
                                   static_cast<uintptr_t>(elements * element_bytes_));
  }

  const Problem& problem_;
  const Parts parts_;
  const int64_t element_bytes_;
  int64_t first_ = 0, count_ = 0;
  int64_t outer_ = 0, inner_ = 0, rows_ = 0;
};

template <class T>
inline bool can_stream(bool wanted, const T* to) {
  return wanted && is_aligned_for_streaming(to);
}
