// Writes rows past the cache. Streamed stores need aligned addresses, which rows of an odd width do
// not have: a small buffer gathers those and writes whole cache lines.
#pragma once

static_assert(kVectorBytes <= kLine, "a vector never spans more than two lines");

// Prefetches a pack into the first-level cache: rows with gaps between them take up to a quarter
// longer where only the second-level cache has them.
template <class Stored>
inline void prefetch_pack(const Stored* from) {
  for (int64_t at = 0; at < kVectorBytes; at += kLine)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + at, 0, 3);
}

template <class Stored>
inline void prefetch_pack_for_writing(const Stored* to) {
  for (int64_t at = 0; at < kVectorBytes; at += kLine)
    __builtin_prefetch(reinterpret_cast<const char*>(to) + at, 1, 2);
}

template <class Stored>
inline void prefetch_for_writing(const Stored* row, int64_t cols) {
  constexpr int64_t step = kLine / static_cast<int64_t>(sizeof(Stored));
  for (int64_t col = 0; col < cols; col += step) __builtin_prefetch(row + col, 1, 2);
}

// Writes rows to memory, whole cache lines past the cache. Adjacent rows share a line.
template <class Stored>
class LineWriter {
 public:
  // The most elements of one take().
  static constexpr int64_t kMost = 1024;

  LineWriter() = default;
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;
  ~LineWriter() { write_rest(); }

  // The next elements go to `to`.
  void move_to(Stored* to) {
    char* address = reinterpret_cast<char*>(to);
    if (address == to_ + end_) return;
    write_rest();
    // Offsets in the buffer are offsets from the cache line in memory.
    begin_ = end_ = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % kLine);
    to_ = address - begin_;
  }

  // Write at most kMost elements at next(), then pass their number to take().
  Stored* next() { return reinterpret_cast<Stored*>(buffer_ + end_); }
  void take(int64_t count) {
    end_ += count * static_cast<int64_t>(sizeof(Stored));
    int64_t line = 0;
    if (begin_ > 0 && end_ >= kLine) {
      std::memcpy(to_ + begin_, buffer_ + begin_, static_cast<size_t>(kLine - begin_));
      begin_ = 0;
      line = kLine;
    }
    for (; line + kLine <= end_; line += kLine) stream_line(to_ + line, buffer_ + line);
    std::memcpy(buffer_, buffer_ + line, static_cast<size_t>(end_ - line));
    to_ += line;
    end_ -= line;
  }

 private:
  void write_rest() {
    if (begin_ < end_)
      std::memcpy(to_ + begin_, buffer_ + begin_, static_cast<size_t>(end_ - begin_));
  }
  static void stream_line(char* to, const char* from) {
    for (int64_t at = 0; at < kLine; at += kVectorBytes)
      stream(reinterpret_cast<float*>(to + at), load(reinterpret_cast<const float*>(from + at)));
  }

  alignas(kLine) char buffer_[kMost * static_cast<int64_t>(sizeof(Stored)) + 2 * kLine];
  char* to_ = nullptr;
  int64_t begin_ = 0, end_ = 0;
};

template <class Stored>
inline bool is_aligned_for_streaming(const Stored* to) {
  return reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0;
}

// Writes columns [begin, end) of one row to `to`, past the cache. `row.to(y)` is the row's kernel
// with y as its output.
template <class Row, class Stored>
inline void stream_row(Row row, Stored* to, int64_t begin, int64_t end, LineWriter<Stored>& lines) {
  if (is_aligned_for_streaming(to)) {
    walk_columns<true, Stored>(row.to(to), begin, end);
    return;
  }
  lines.move_to(to + begin);
  for (int64_t col = begin; col < end; col += LineWriter<Stored>::kMost) {
    const int64_t last = std::min(end, col + LineWriter<Stored>::kMost);
    walk_columns<false, Stored>(row.to(lines.next() - col), col, last);
    lines.take(last - col);
  }
}
