// Threads for the bindings of frameworks that lend none (NumPy, TensorFlow). Started when first
// needed, asleep when idle, started again after a fork.
#pragma once

#include "layer_norm.h"

namespace layernorm {

constexpr int kMostThreads = 1024;

// By default LAYERNORM_NUM_THREADS, or the number of processors this process may run on.
int get_num_threads();

// From 1 to kMostThreads; takes effect at the next call.
void set_num_threads(int count);

// The pool as a kernel's callback, with at most `most` threads. A caller that finds the pool busy
// runs on its own thread alone: no caller waits for another.
Threads pool_threads(int most = kMostThreads);

}  // namespace layernorm
