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
  // would release references without the GIL. It hangs instead, as from 3.14 on. It asks before,
  // because a process that links the unwinder statically does not survive the unwinding; only a
  // thread that is already waiting for the GIL when Python begins to exit is still unwound.
  ~WithoutGil() {
    if (!state_) return;
    if (python_exits()) hang();
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      hang();
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  static bool python_exits() {
#if PY_VERSION_HEX >= 0x030d0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
  }
  [[noreturn]] static void hang() {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }

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
