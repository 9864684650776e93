// Passes over a row, or over neighboring strided rows, a vector at a time, for what is written once
// for both.
#pragma once

// One row of an array.
template <class Stored>
struct RowOf {
  Stored* data;
  int64_t stride;
  Stored& operator[](int64_t col) const { return data[col * stride]; }
};

// sum(x - mean) / cols: the residual, for statistics that came without it.
template <class Stored>
inline Compute<Stored> residual_of(Compute<Stored> mean, RowOf<const Stored> x, int64_t cols) {
  double sum = 0, rest = 0;
  for (int64_t col = 0; col < cols; ++col)
    add_compensated(sum, rest, static_cast<double>(to_compute(x[col]) - mean));
  return static_cast<Compute<Stored>>((sum + rest) / static_cast<double>(cols));
}

// A vector of elements: a part of a row's pack, a row's last ones, or a column of several rows.
template <class Stored>
struct PartOfPack {
  using C = Compute<Stored>;
  int64_t col, part;

  int64_t place() const { return col + part * lanes<C>; }  // of the parameters, in pack order
  void add(C* sums, Vector<C> v) const { store(sums + place(), load(sums + place()) + v); }
  Vector<C> read(RowOf<const Stored> row) const { return load_pack(row.data + col).part[part]; }
  Vector<C> parameter(const C* values) const { return load(values + place()); }
  Vector<C> keep(Vector<C> v) const { return v; }
};
template <class Stored>
struct LastOfRow {
  using C = Compute<Stored>;
  int64_t col, rest;

  void add(C* sums, Vector<C> v) const {
    store_first(sums + col, load_first(sums + col, rest) + v, rest);
  }
  Vector<C> read(RowOf<const Stored> row) const { return load_first(row.data + col, rest); }
  Vector<C> parameter(const C* values) const { return load_first(values + col, rest); }
  // Zero past the row's end, where elements read as 0 would not stay 0.
  Vector<C> keep(Vector<C> v) const { return keep_first(v, rest); }
};
template <class Stored>
struct OfRows {
  using C = Compute<Stored>;
  int64_t col, rows;

  int64_t place() const { return col; }
  Vector<C> read(RowOf<const Stored> first) const {
    return rows == lanes<C> ? load(&first[col]) : load_first(&first[col], rows);
  }
  Vector<C> parameter(const C* values) const { return broadcast(values[col]); }
  Vector<C> keep(Vector<C> v) const { return v; }
};

// The following two go over vectors of elements: along one contiguous row, or across neighboring
// rows, one in each lane. The arithmetic is written once, for both; what it knows of each row is in
// arrays of one entry a lane.
template <class Stored>
struct AlongRow {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;
  int64_t cols;

  int64_t count() const { return 1; }
  // Calls f(elements, turn) for all of the row; `turn` is 0 and 1 in turns, so that an addition
  // need not wait for the one before.
  template <class F>
  LAYERNORM_INLINE void each(const F& f) const {
    int64_t col = 0;
    for (; col + 2 * W <= cols; col += 2 * W) {
      f(in_pack(col, 0), 0);
      f(in_pack(col, 1), 1);
    }
    for (; col < cols; col += W) f(LastOfRow<Stored>{col, std::min(W, cols - col)}, 0);
  }
  template <class F>
  LAYERNORM_INLINE void write(RowOf<Stored> to, const F& value) const {
    int64_t col = 0;
    for (; col + 2 * W <= cols; col += 2 * W) {
      const Vector<C> values[2] = {value(in_pack(col, 0)), value(in_pack(col, 1))};
      store_both(to.data + col, values);
    }
    for (; col < cols; col += W) {
      const LastOfRow<Stored> last = {col, std::min(W, cols - col)};
      store_first(to.data + col, value(last), last.rest);
    }
  }
  // The total of the row, for each lane.
  static void put_total(const LaneTotal<C>& of_lanes, double* to, double beyond = 0) {
    std::fill(to, to + W, of_lanes.sum(beyond));
  }
  // As LaneTotal::sum_in_two().
  static void put_in_two(const LaneTotal<C>& of_lanes, double* to, double* rests) {
    double rest = 0;
    std::fill(to, to + W, of_lanes.sum_in_two(&rest));
    std::fill(rests, rests + lanes<double>, rest);
  }
  // What is known of the first row, for each lane.
  template <class T>
  void spread(T* of_rows) const {
    std::fill(of_rows + 1, of_rows + W, of_rows[0]);
  }
  static BitsOf<C> largest(BitsOf<C> of_lanes) { return BitsOf<C>{} + largest_of_lanes(of_lanes); }

 private:
  static constexpr bool joined = vectors_in_pack<Stored> == 2;
  static PartOfPack<Stored> in_pack(int64_t col, int64_t k) {
    return joined ? PartOfPack<Stored>{col, k} : PartOfPack<Stored>{col + k * W, 0};
  }
  static void store_both(Stored* to, const Vector<C>* values) {
    if constexpr (joined) return store_pack<false>(to, Pack<Stored>{{values[0], values[1]}});
    store(to, values[0]);
    store(to + W, values[1]);
  }
};

template <class Stored>
struct AcrossRows {
  using C = Compute<Stored>;
  static constexpr int64_t W = lanes<C>;
  int64_t cols;
  int64_t rows;      // at most W
  BitsOf<C> wanted;  // the lanes of the rows to write: all bits set

  AcrossRows(int64_t of_cols, int64_t of_rows) : cols(of_cols), rows(of_rows), wanted{} {}
  template <class F>
  AcrossRows(int64_t of_cols, int64_t of_rows, const F& is_wanted) : AcrossRows(of_cols, of_rows) {
    for (int64_t row = 0; row < rows; ++row) wanted[row] = is_wanted(row) ? -1 : 0;
  }
  bool is_wanted(int64_t row) const { return wanted[row] != 0; }
  int64_t count_wanted() const {
    int64_t count = 0;
    for (int64_t row = 0; row < rows; ++row) count += is_wanted(row);
    return count;
  }
  AcrossRows others() const {
    return AcrossRows(cols, rows, [&](int64_t row) { return !is_wanted(row); });
  }

  int64_t count() const { return rows; }
  template <class F>
  LAYERNORM_INLINE void each(const F& f) const {
    for (int64_t col = 0; col < cols; ++col)
      f(OfRows<Stored>{col, rows}, static_cast<int>(col & 1));
  }
  template <class F>
  LAYERNORM_INLINE void write(RowOf<Stored> to, const F& value) const {
    for (int64_t col = 0; col < cols; ++col) {
      const OfRows<Stored> rows_here = {col, rows};
      const Vector<C> before = rows_here.read(RowOf<const Stored>{to.data, to.stride});
      store_first(&to[col], wanted ? value(rows_here) : before, rows);
    }
  }
  static void put_total(const LaneTotal<C>& of_lanes, double* to, double beyond = 0) {
    of_lanes.store(to, beyond);
  }
  static void put_in_two(const LaneTotal<C>& of_lanes, double* to, double* rests) {
    of_lanes.store_in_two(to, rests);
  }
  // The lanes past the rows are as the first, so that they hold numbers.
  template <class T>
  void spread(T* of_rows) const {
    std::fill(of_rows + rows, of_rows + W, of_rows[0]);
  }
  static BitsOf<C> largest(BitsOf<C> of_lanes) { return of_lanes; }
};

// Sums of several terms: a few are added to a lane, in turns, then flushed into the totals.
template <class C, int count>
struct FlushedSums {
  static constexpr int kMost = 4;  // additions to a lane
  Vector<C> part[2][count] = {};
  LaneTotal<C> totals[count] = {};
  int added = 0;

  LAYERNORM_INLINE void add(int turn, const std::array<Vector<C>, count>& terms) {
    LAYERNORM_UNROLL
    for (int k = 0; k < count; ++k) part[turn][k] += terms[static_cast<size_t>(k)];
    if (turn == 1 && ++added == kMost) flush();
  }
  LAYERNORM_INLINE void flush() {
    LAYERNORM_UNROLL
    for (int k = 0; k < count; ++k) {
      totals[k].add(part[0][k] + part[1][k]);
      part[0][k] = part[1][k] = Vector<C>{};
    }
    added = 0;
  }
};

// For each row the largest of several terms, in all its lanes.
template <int count, class Rows, class F>
LAYERNORM_INLINE std::array<BitsOf<typename Rows::C>, count> largest_over(const Rows& rows,
                                                                          const F& terms) {
  using Bits = BitsOf<typename Rows::C>;
  Bits most[2][count];
  for (auto& each : most)
    std::fill(each, each + count, Bits{} + std::numeric_limits<int32_t>::min());
  rows.each([&](const auto& elements, int turn) {
    const std::array<Bits, count> here = terms(elements);
    LAYERNORM_UNROLL
    for (size_t k = 0; k < count; ++k) most[turn][k] = larger(here[k], most[turn][k]);
  });
  std::array<Bits, count> result;
  for (size_t k = 0; k < count; ++k) result[k] = rows.largest(larger(most[0][k], most[1][k]));
  return result;
}
template <class Rows, class F>
LAYERNORM_INLINE auto largest_over(const Rows& rows, const F& term) {
  using Terms = std::array<BitsOf<typename Rows::C>, 1>;
  return largest_over<1>(rows, [&](const auto& elements) { return Terms{term(elements)}; })[0];
}

// The largest magnitude of each row; not finite where the row holds a NaN or an infinity.
template <class Rows, class Stored>
inline void largest_magnitudes(const Rows& rows, RowOf<const Stored> x, Compute<Stored>* to) {
  using C = Compute<Stored>;
  const BitsOf<C> most =
      largest_over(rows, [&](const auto& at) { return bits_of_magnitude<C>(at.read(x)); });
  store(to, reinterpret_cast<Vector<C>>(most));
}
// The same of one row, or of any neighboring elements.
template <class Stored>
__attribute__((noinline)) Compute<Stored> largest_magnitude(const Stored* x, int64_t count) {
  Compute<Stored> largest[lanes<Compute<Stored>>];
  largest_magnitudes(AlongRow<Stored>{count}, RowOf<const Stored>{x, 1}, largest);
  return largest[0];
}

// The largest |g| of each row, where g = dy * weight. Where all have underflowed to 0, the smallest
// number; 0 where dy is 0.
template <class Rows, class Stored>
__attribute__((noinline)) void largest_g(const Rows& rows, RowOf<const Stored> dy,
                                         const Compute<Stored>* weight, Compute<Stored>* to) {
  using C = Compute<Stored>;
  using Terms = std::array<BitsOf<C>, 2>;
  const Terms most = largest_over<2>(rows, [&](const auto& at) {
    const Vector<C> dy_here = at.read(dy);
    const Vector<C> g = weight ? dy_here * at.parameter(weight) : dy_here;
    return Terms{bits_of_magnitude<C>(g), bits_of_magnitude<C>(dy_here)};
  });
  const BitsOf<C> least = BitsOf<C>{} + 1;  // the bits of the smallest number
  const BitsOf<C> of_g = most[0] == 0 ? (most[1] == 0 ? most[1] : least) : most[0];
  store(to, reinterpret_cast<Vector<C>>(of_g));
}
