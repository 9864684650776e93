// Threads for a host that brings none (NumPy, TensorFlow). Started when first needed, asleep when
// idle, gone and restarted after a fork.
#pragma once

#include "layer_norm.h"

namespace layernorm {

constexpr int kMostThreads = 1024;

// As many as LAYERNORM_NUM_THREADS says, or as processors this process may run on.
int get_num_threads();

// From 1 to kMostThreads; takes effect at the next call.
void set_num_threads(int count);

// The pool as a kernel's callback, with no more threads than `most`. A second caller, while one is
// being served, runs on its own thread alone: no caller ever waits for another.
Threads pool_threads(int most = kMostThreads);

}  // namespace layernorm
