// Running the kernels without the GIL.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <chrono>
#include <cstdint>
#include <thread>

#include "layer_norm.h"

namespace layernorm::python {

// Releasing the GIL costs about 0.1 us: below this size no other thread could use it.
constexpr int64_t kLongWorkBytes = 64 * 1024;

class WithoutGil {
 public:
  explicit WithoutGil(int64_t bytes)
      : state_(bytes >= kLongWorkBytes ? PyEval_SaveThread() : nullptr) {}
  // Until Python 3.13, a daemon thread that takes the GIL back while Python exits is unwound, and
  // would release references without the GIL. It hangs instead, as from 3.14 on. With glibc, only
  // the unwinder that it loads can be caught: no copy may be linked into this module or into Python.
  ~WithoutGil() {
    if (!state_) return;
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// Calls forward() or backward(), without the GIL where that takes long. False, with Python's
// MemoryError set, if memory runs out.
template <class Job>
bool run(Status (*kernels)(const Job&, const Threads&), const Job& job, const Threads& threads) {
  Status status;
  {
    const WithoutGil released(job.problem.shape.elements() * size_of(job.problem.type));
    status = kernels(job, threads);
  }
  if (status != Status::ok) PyErr_NoMemory();
  return status == Status::ok;
}

}  // namespace layernorm::python
