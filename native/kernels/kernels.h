// The interface between the schedule and the kernels: one table of functions per instruction set.
#pragma once

#include <algorithm>
#include <atomic>

#include "../layer_norm.h"

namespace layernorm {

// Work is cut into units: a row, or with inner > 1 a tile of up to kTileRows neighboring rows.
constexpr int64_t kTileRows = 64;

// The parameters' gradients are reduced in strips of this many columns.
constexpr int64_t kReduceCols = 256;

// Wide rows are worked on in blocks of columns that stay in the first-level cache: whole packs.
constexpr int64_t kBlockCols = 1024;

// A contiguous row wider than kPartCols goes in parts, at most kMostParts, whose sums are added in
// their order. So threads may share a row, and its bits do not tell whether they did.
constexpr int64_t kPartCols = 32 * 1024;
constexpr int64_t kMostParts = 32;
constexpr int64_t part_cols(int64_t cols) {
  const int64_t least = (cols + kMostParts - 1) / kMostParts;
  return std::max(kPartCols, (least + kBlockCols - 1) / kBlockCols * kBlockCols);
}

// The cache that x fits into beside the other arrays.
enum class Cache { second_level, third_level, none };

// A parameter is null, or (cols,) of the compute type, with the 1 of a zero-centered weight added.
// For contiguous rows without a gate it is in pack order (simd_packs.h).
struct ForwardTask {
  const Forward* job;
  const void* weight;
  const void* bias;
  Cache cache;
  bool prefetch;  // of x
  bool stream;    // write y past the cache; its rows begin with cache lines, or its columns do
  const Threads* threads;       // share each row; null: do not
  std::atomic<Status>* status;  // written where memory is lacking
};

// What a backward does before and after the norm of a batch of rows, or of a tile: see gated.h.
class Around {
 public:
  // Of units [first, first + count).
  virtual void before(int64_t first, int64_t count) = 0;
  virtual void after() = 0;
  // Columns [begin, end) of one unit's x and dy alone.
  virtual void prepare(int64_t unit, int64_t begin, int64_t end) = 0;

 protected:
  ~Around() = default;
};

constexpr int64_t kFoldRows = 16;  // the most rows added to one partial sum
constexpr bool has_low(const Shape& shape, int64_t units_per_block) {
  return shape.inner > 1 || units_per_block > kFoldRows;
}

// The parameters' gradients are summed in blocks of consecutive units. Each block has its own
// partial sums of the compute type: (4, cols), the high and low parts of dweight, then of dbias; or
// (2, cols), one sum of each, where a block has at most kFoldRows contiguous rows.
struct BackwardTask {
  const Backward* job;
  const void* weight;
  bool prefetch;  // of x, dy and dx
  bool stream;    // write dx past the cache; of strided rows, the columns begin with cache lines
  const Threads* threads;  // share each row; null: do not
  int64_t units;
  int64_t units_per_block;
  int64_t blocks;
  // (blocks, 4 or 2, cols), ordered as weight is; null where neither dweight nor dbias is wanted.
  void* partials;
  const void* bias;  // with a gate
  std::atomic<Status>* status;
  Around* around = nullptr;
};

// The parameters as in a ForwardTask.
struct SplitRowsTask {
  const SplitRows* job;
  const void* weight;
  const void* bias;
};

struct Kernels {
  const char* name;
  // [begin, end) counts units in forward, blocks in backward, strips of columns in reduce.
  void (*forward)(const ForwardTask& task, int64_t begin, int64_t end);
  void (*backward)(const BackwardTask& task, int64_t begin, int64_t end);
  void (*reduce)(const BackwardTask& task, int64_t begin, int64_t end);
  // Units, as in forward.
  void (*split_rows)(const SplitRowsTask& task, int64_t begin, int64_t end);
  // Writes a parameter in the compute type, plus 1 where asked, with canonical NaNs.
  void (*widen)(DataType type, const void* parameter, bool add_one, int64_t cols, void* widened);
  // Whether pack order differs from the columns' order for this type, and the copy into it.
  bool (*has_pack_order)(DataType type);
  void (*to_pack_order)(DataType type, const void* values, int64_t cols, void* ordered);
};

extern const Kernels kernels_baseline;
#if defined(LAYERNORM_X86_64)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels& chosen_kernels();

}  // namespace layernorm
