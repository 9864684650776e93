// Norms rounded to 8 bits: q = y / scale, where y is the norm rounded to x's type. The usual kernels
// write y into a buffer that stays in the cache, and passes over it find each row's largest
// magnitude and write q.
#pragma once

// The 8-bit types: code() rounds to nearest, ties to even, and saturates. The code is the low byte.
struct Int8 {
  static constexpr double most = 127;

  // Added, this leaves no bits after the point, and the integer in the lowest ones. NaN gives 0.
  template <class C>
  LAYERNORM_INLINE static BitsOf<C> code(Vector<C> v) {
    const Vector<C> least = broadcast(C{-128}), greatest = broadcast(C{127});
    v = v < least ? least : v > greatest ? greatest : v;
    v = v == v ? v : Vector<C>{};
    return bits_of<C>(v + broadcast(Exponential<C>::to_integer));
  }
};

// A float of 8 bits with `digits` of them after the point; below 2^least_exponent it is subnormal.
template <int digits, int least_exponent, int greatest, int nan>
struct Float8 {
  static constexpr double most = greatest;

  template <class C>
  LAYERNORM_INLINE static BitsOf<C> code(Vector<C> v) {
    using E = Exponential<C>;
    using Bits = BitsOf<C>;
    constexpr int dropped = E::digits - digits;
    constexpr auto one = E::bias << E::digits;
    constexpr auto step = decltype(one){1} << E::digits;
    const Bits least = Bits{} + one + least_exponent * step;
    Vector<C> size = reinterpret_cast<Vector<C>>(bits_of_magnitude<C>(v));
    size = size < broadcast(C{greatest}) ? size : broadcast(C{greatest});
    // 2^e, the power of two below size, and 2^(e + dropped), whose last place is the code's.
    Bits power = bits_of<C>(size) >> E::digits << E::digits;
    power = power > least ? power : least;
    const Bits shifted = power + dropped * step;
    const Vector<C> sum = size + reinterpret_cast<Vector<C>>(shifted);
    const Bits code = bits_of<C>(sum) - shifted + ((power - least) >> dropped);
    const Bits sign = bits_of<C>(v) >> (8 * sizeof(C) - 8) & 0x80;
    return v == v ? code | sign : Bits{} + nan;
  }
};
using Float8E4M3 = Float8<3, -6, 448, 0x7f>;
using Float8E5M2 = Float8<2, -14, 57344, 0x7e>;

// Raises the largest magnitudes of neighboring rows to those of one of their columns.
template <class Stored, class C>
__attribute__((noinline)) void raise_to_largest(const Stored* y, C* most, int64_t count) {
  each_vector<C>(count, [&](const auto& elements, int64_t at) {
    const BitsOf<C> bits = bits_of_magnitude<C>(elements.read(y + at));
    const BitsOf<C> before = bits_of<C>(elements.read(most + at));
    elements.write(most + at, reinterpret_cast<Vector<C>>(larger(bits, before)), false);
  });
}

// The scale of a row: its largest magnitude becomes the type's largest number. A row of zeros, or of
// numbers too small, has the smallest normal number.
template <class C>
C scale_for(C largest, double most) {
  if (largest != largest) return std::numeric_limits<C>::quiet_NaN();
  return std::max(largest / static_cast<C>(most), std::numeric_limits<C>::min());
}

// q[k] = y[k] / scales[k]; or with `step` 0 and as many equal scales as there are lanes, / scales[0].
template <class Stored, class Q>
__attribute__((noinline)) void quantize_as(const Stored* y, const Compute<Stored>* scales,
                                           int64_t step, int64_t count, uint8_t* q) {
  using C = Compute<Stored>;
  each_vector<C>(count, [&](const auto& elements, int64_t at) {
    const Vector<C> scale = elements.read(scales + at * step);
    elements.write_low_bytes(q + at, Q::template code<C>(elements.read(y + at) / scale));
  });
}

template <class Stored>
struct Quantizer {
  double most;
  decltype(&quantize_as<Stored, Int8>) quantize;
};
template <class Stored>
Quantizer<Stored> quantizer_for(QuantizedType type) {
  switch (type) {
    case QuantizedType::float8_e4m3fn: return {Float8E4M3::most, quantize_as<Stored, Float8E4M3>};
    case QuantizedType::float8_e5m2: return {Float8E5M2::most, quantize_as<Stored, Float8E5M2>};
    default: return {Int8::most, quantize_as<Stored, Int8>};
  }
}

template <class Stored>
void forward_quantized(const ForwardTask& task, int64_t begin, int64_t end) {
  using C = Compute<Stored>;
  const Forward& job = *task.job;
  const Quantized& quantized = job.quantized;
  const Quantizer<Stored> quantizer = quantizer_for<Stored>(quantized.type);
  const int64_t cols = job.problem.shape.cols;
  BufferedRows rows(job.problem, task.threads, sizeof(Stored));
  const bool contiguous = rows.are_contiguous();
  const int64_t batch_units = contiguous ? rows_per_batch<Stored>(cols, task.cache) : 1;
  const int64_t batch_rows = contiguous ? batch_units : kTileRows;
  const Parts parts{contiguous ? cols : 1, nullptr};
  const int64_t bytes = rows.elements(batch_units) * int64_t{sizeof(Stored)};
  const int64_t bytes_of_rows = batch_rows * parts.count * int64_t{sizeof(C)};
  Workspace workspace(Workspace::needed_for(bytes) + 2 * Workspace::needed_for(bytes_of_rows));
  if (!workspace) return task.status->store(Status::out_of_memory);
  Stored* const buffer = static_cast<Stored*>(workspace.take(bytes));
  C* const largest = static_cast<C*>(workspace.take(bytes_of_rows));  // (rows, parts)
  C* const scales = static_cast<C*>(workspace.take(bytes_of_rows));
  Forward norm = job;
  norm.quantized = {};
  ForwardTask of_norm = task;
  of_norm.job = &norm;
  if (quantized.given_scale)
    std::fill_n(scales, batch_rows, *static_cast<const C*>(quantized.given_scale));
  for (int64_t first = begin; first < end; first += batch_units) {
    const int64_t count = std::min(batch_units, end - first);
    rows.move_to(first, count);
    norm.y = rows.in_buffer(buffer);
    forward_units(of_norm, first, first + count);
    if (!quantized.given_scale) {
      std::fill_n(largest, batch_rows * parts.count, C{0});
      rows.each_span([&](const Span& span) {
        const Stored* const y = buffer + span.at;
        if (!contiguous) return raise_to_largest(y, largest, span.count);
        const int64_t row = span.at / cols, part = span.col / parts.size;
        largest[row * parts.count + part] = largest_magnitude(y, span.count);
      });
      for (int64_t row = 0; row < rows.count(); ++row) {
        const C of_row = largest_magnitude(largest + row * parts.count, parts.count);
        scales[row] = scale_for(of_row, quantizer.most);
        static_cast<C*>(quantized.scales)[rows.offset(row, job.problem.statistics.strides)] =
            scales[row];
      }
    }
    rows.each_span([&](const Span& span) {
      const Stored* const y = buffer + span.at;
      uint8_t* const q = span.of<uint8_t>(quantized.values);
      if (!contiguous) return quantizer.quantize(y, scales, 1, span.count, q);
      C of_row[lanes<C>];
      std::fill_n(of_row, lanes<C>, scales[span.at / cols]);
      quantizer.quantize(y, of_row, 0, span.count, q);
    });
  }
}
