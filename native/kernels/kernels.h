// What the schedule asks of the kernels: one table of functions per instruction set.
#pragma once

#include "../layer_norm.h"

namespace layernorm {

// Work is cut into units: a row, or with inner > 1 a tile of up to kTileRows neighboring rows.
constexpr int64_t kTileRows = 64;

// The parameters' gradients are reduced in strips of this many columns.
constexpr int64_t kReduceCols = 256;

// Parameters come as null or (cols,) of the compute type, with 1 + weight already taken; for rows
// of a 16-bit type, in the order that the kernels walk a row, and then once more in their own.
struct ForwardTask {
  const Forward* job;
  const void* weight;
  const void* bias;
  const void* plain_weight;
  const void* plain_bias;
  bool fetch;   // fetch x ahead of its use
  bool far;     // x is too large for a processor's own cache
  bool stream;  // write y, whose rows begin with cache lines, past the cache
};

// The gradients of the parameters are summed in blocks of consecutive units, each into its own
// partial sums: dweight's high and low parts, then dbias's, (4, cols) of the compute type.
struct BackwardTask {
  const Backward* job;
  const void* weight;
  const void* plain_weight;
  bool fetch;  // fetch x, dy and dx ahead of their use
  bool stream;
  int64_t units;
  int64_t units_per_block;
  int64_t blocks;
  void* partials;  // (blocks, 4, cols), or null where no parameter wants a gradient
};

struct Kernels {
  const char* name;
  // Units, blocks, and strips of the parameters' gradients, each [begin, end).
  void (*forward)(const ForwardTask& task, int64_t begin, int64_t end);
  void (*backward)(const BackwardTask& task, int64_t begin, int64_t end);
  void (*reduce)(const BackwardTask& task, int64_t begin, int64_t end);
  // A parameter in the compute type, plus one where asked, its NaNs canonical.
  void (*widen)(DataType type, const void* parameter, bool add_one, int64_t cols, void* widened);
  // Whether rows of this type are walked in an order of their own; values put into that order.
  bool (*walks_in_packs)(DataType type);
  void (*put_in_packs)(DataType type, const void* values, int64_t cols, void* ordered);
};

extern const Kernels kernels_baseline;
#if defined(LAYERNORM_X86_64)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels& chosen_kernels();

}  // namespace layernorm
