// The kernels of one instruction set. Compiled once for each: LAYERNORM_ISA names it, the
// compiler's flags choose it. Everything but the table is in an anonymous namespace, or the linker
// could merge functions of the same name across instruction sets.
#include "kernels.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>

#include "../workspace.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace layernorm {
namespace {

#include "simd.h"
//
#include "activation.h"
//
#include "sums.h"
//
#include "walk.h"
//
#include "statistics.h"
//
#include "cancellation.h"
//
#include "row_vectors.h"
//
#include "powers_of_two.h"
//
#include "scaled_rows.h"
//
#include "streaming.h"
//
#include "rows_forward.h"
//
#include "partial_sums.h"
//
#include "rows_gradient.h"
//
#include "rows_backward.h"
//
#include "columns_forward.h"
//
#include "columns_backward.h"
//
#include "reduce.h"
//
#include "buffered_rows.h"
//
#include "gated.h"
//
#include "quantized.h"
//
#include "split_rows.h"

// Calls f with a value of the stored type.
template <class F>
void with_stored_type(DataType type, F f) {
  switch (type) {
    case DataType::float32: return f(float{});
    case DataType::float64: return f(double{});
    case DataType::bfloat16: return f(bfloat16{});
    case DataType::float16: return f(float16{});
  }
}

template <class F>
void with_flag(bool flag, F f) {
  if (flag)
    f(std::true_type{});
  else
    f(std::false_type{});
}

void forward_units(const ForwardTask& task, int64_t begin, int64_t end) {
  const Problem& problem = task.job->problem;
  with_stored_type(problem.type, [&](auto stored) {
    if (task.job->quantized.values.data)
      return forward_quantized<decltype(stored)>(task, begin, end);
    if (task.job->gate.values.data) return forward_gated<decltype(stored)>(task, begin, end);
    with_flag(problem.centered, [&](auto centered) {
      with_flag(task.weight != nullptr, [&](auto weight) {
        with_flag(task.bias != nullptr, [&](auto bias) {
          using A = Affine<decltype(weight)::value, decltype(bias)::value>;
          if (problem.shape.inner == 1)
            forward_rows<decltype(stored), decltype(centered)::value, A>(task, begin, end);
          else
            forward_columns<decltype(stored), decltype(centered)::value>(task, begin, end);
        });
      });
    });
  });
}

void backward_blocks(const BackwardTask& task, int64_t begin, int64_t end) {
  const Backward& job = *task.job;
  const Wanted wanted = job.dbias ? Wanted::both : job.dweight ? Wanted::dweight : Wanted::nothing;
  with_stored_type(job.problem.type, [&](auto stored) {
    if (job.gate.values.data) return backward_gated<decltype(stored)>(task, begin, end);
    with_flag(job.problem.centered, [&](auto centered) {
      using Stored = decltype(stored);
      constexpr bool c = decltype(centered)::value;
      if (job.problem.shape.inner > 1) return backward_columns<Stored, c>(task, wanted, begin, end);
      with_flag(task.weight != nullptr, [&](auto weight) {
        constexpr bool w = decltype(weight)::value;
        switch (wanted) {
          case Wanted::both: return backward_rows<Stored, c, w, Wanted::both>(task, begin, end);
          case Wanted::dweight:
            return backward_rows<Stored, c, w, Wanted::dweight>(task, begin, end);
          case Wanted::nothing:
            return backward_rows<Stored, c, w, Wanted::nothing>(task, begin, end);
        }
      });
    });
  });
}

// x's own type; or the compute type, which has parameters of any other where it stands for x's.
template <class Stored, class Parameter>
constexpr bool can_have =
    std::is_same<Compute<Stored>, Compute<Parameter>>::value &&
    (std::is_same<Stored, Parameter>::value || sizeof(Stored) >= 4 || sizeof(Parameter) >= 4);

void reduce_strips(const BackwardTask& task, int64_t begin, int64_t end) {
  const Problem& problem = task.job->problem;
  with_stored_type(problem.type, [&](auto stored) {
    if (task.job->gate.values.data) return reduce_gated<decltype(stored)>(task, begin, end);
    with_stored_type(problem.parameter_type, [&](auto parameter) {
      using Stored = decltype(stored);
      using Parameter = decltype(parameter);
      if constexpr (can_have<Stored, Parameter>)
        reduce_partial_sums<Stored, Parameter>(task, begin, end);
    });
  });
}

void split_rows_units(const SplitRowsTask& task, int64_t begin, int64_t end) {
  with_stored_type(task.job->problem.type,
                   [&](auto stored) { step_over_units<decltype(stored)>(task, begin, end); });
}

template <class V>
V with_canonical_nan(V value) {
  return nan_where(value, value);
}

// Writes f(vector) of `count` values, a vector at a time.
template <class Stored, class F>
void for_each_vector(const Stored* from, int64_t count, Compute<Stored>* to, F f) {
  constexpr int64_t W = lanes<Compute<Stored>>;
  int64_t at = 0;
  for (; at + W <= count; at += W) store(to + at, f(load(from + at)));
  if (at < count) store_first(to + at, f(load_first(from + at, count - at)), count - at);
}

void widen(DataType type, const void* parameter, bool add_one, int64_t cols, void* widened) {
  with_stored_type(type, [&](auto stored) {
    using C = Compute<decltype(stored)>;
    const Vector<C> one = broadcast(static_cast<C>(add_one ? 1 : 0));
    for_each_vector(static_cast<const decltype(stored)*>(parameter), cols, static_cast<C*>(widened),
                    [&](Vector<C> v) { return with_canonical_nan(one + v); });
  });
}

bool has_pack_order(DataType type) {
  bool result = false;
  with_stored_type(type, [&](auto stored) { result = vectors_in_pack<decltype(stored)> > 1; });
  return result;
}

void to_pack_order(DataType type, const void* values, int64_t cols, void* ordered) {
  with_stored_type(type, [&](auto stored) {
    using Stored = decltype(stored);
    using C = Compute<Stored>;
    C* to = static_cast<C*>(ordered);
    for_each_vector(static_cast<const C*>(values), cols, to,
                    [](Vector<C> v) { return with_canonical_nan(v); });
    for (int64_t col = 0; col + pack_size<Stored> <= cols; col += pack_size<Stored>)
      in_pack_order<Stored>(to + col);
  });
}

}  // namespace

#define LAYERNORM_JOIN(a, b) a##b
#define LAYERNORM_TABLE(isa) LAYERNORM_JOIN(kernels_, isa)
#define LAYERNORM_TEXT(name) #name
#define LAYERNORM_NAME(isa) LAYERNORM_TEXT(isa)

const Kernels LAYERNORM_TABLE(LAYERNORM_ISA) = {
    LAYERNORM_NAME(LAYERNORM_ISA),
    forward_units,
    backward_blocks,
    reduce_strips,
    split_rows_units,
    widen,
    has_pack_order,
    to_pack_order,
};

}  // namespace layernorm
