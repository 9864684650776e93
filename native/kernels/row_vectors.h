// Passes over a row, or over neighboring strided rows, a vector at a time, for what is not written
// for one layout: scaled_rows.h and reduce.h.
#pragma once

// One row of an array.
template <class Stored>
struct RowOf {
  Stored* data;
  int64_t stride;
  Stored& operator[](int64_t col) const { return data[col * stride]; }
};

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
  // What is known of the first row, for each lane.
  template <class T>
  void spread(T* of_rows) const {
    std::fill(of_rows + 1, of_rows + W, of_rows[0]);
  }
  static void put_largest(BitsOf<C> of_lanes, int* to) {
    *to = static_cast<int>(largest_of_lanes(of_lanes));
  }

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
  bool all_are_wanted() const {
    bool all = true;
    for (int64_t row = 0; row < rows; ++row) all = all && is_wanted(row);
    return all;
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
  // The lanes past the rows are as the first, so that they hold numbers.
  template <class T>
  void spread(T* of_rows) const {
    std::fill(of_rows + rows, of_rows + W, of_rows[0]);
  }
  static void put_largest(BitsOf<C> of_lanes, int* to) {
    for (int64_t lane = 0; lane < W; ++lane) to[lane] = static_cast<int>(of_lanes[lane]);
  }
};

// Sums of a few terms each: some additions to a lane, then a LaneTotal.
template <class C, int count>
struct FlushedSums {
  static constexpr int kMost = 4;  // additions to a lane, as few as for strided rows
  Vector<C> part[2][count] = {};
  LaneTotal<C> totals[count] = {};
  int added = 0;

  LAYERNORM_INLINE void add(int turn, const std::array<Vector<C>, count>& terms) {
    LAYERNORM_UNROLL
    for (int k = 0; k < count; ++k) part[turn][k] += terms[static_cast<size_t>(k)];
    if (turn == 0 || ++added < kMost) return;
    flush();
    added = 0;
  }
  LAYERNORM_INLINE void flush() {
    LAYERNORM_UNROLL
    for (int k = 0; k < count; ++k) {
      totals[k].add(part[0][k] + part[1][k]);
      part[0][k] = part[1][k] = Vector<C>{};
    }
  }
  LAYERNORM_INLINE const LaneTotal<C>& total(int k) {
    flush();
    return totals[k];
  }
};

// The largest of each lane, of several terms.
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
  for (size_t k = 0; k < count; ++k) result[k] = larger(most[0][k], most[1][k]);
  return result;
}

template <class Rows, class F>
LAYERNORM_INLINE auto largest_over(const Rows& rows, const F& term) {
  using Terms = std::array<BitsOf<typename Rows::C>, 1>;
  return largest_over<1>(rows, [&](const auto& elements) { return Terms{term(elements)}; })[0];
}

// The largest magnitude of neighboring elements, or of each row; not finite where one is not.
template <class Stored>
__attribute__((noinline)) Compute<Stored> largest_magnitude(const Stored* y, int64_t count) {
  using C = Compute<Stored>;
  const AlongRow<Stored> row = {count};
  const auto bits = largest_of_lanes(
      largest_over(row, [&](const auto& at) { return bits_of_magnitude<C>(at.read({y, 1})); }));
  C largest;
  std::memcpy(&largest, &bits, sizeof(largest));
  return largest;
}
template <class Stored>
void largest_magnitudes(const AlongRow<Stored>& row, RowOf<const Stored> x, Compute<Stored>* to) {
  *to = largest_magnitude(x.data, row.cols);
}
template <class Stored>
void largest_magnitudes(const AcrossRows<Stored>& rows, RowOf<const Stored> x,
                        Compute<Stored>* to) {
  using C = Compute<Stored>;
  const BitsOf<C> most =
      largest_over(rows, [&](const auto& at) { return bits_of_magnitude<C>(at.read(x)); });
  store(to, reinterpret_cast<Vector<C>>(most));
}
