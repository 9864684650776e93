// Who holds the GIL while the kernels run.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <chrono>
#include <cstdint>
#include <thread>

namespace layernorm::python {

// Releasing the GIL costs about 0.1 us; below this size nobody could use it anyway.
constexpr int64_t kLongWorkBytes = 64 * 1024;

class WithoutGil {
 public:
  explicit WithoutGil(int64_t bytes)
      : state_(bytes >= kLongWorkBytes ? PyEval_SaveThread() : nullptr) {}
  // A daemon thread that comes back while Python ends is made to exit (until Python 3.13), by an
  // unwinding that would give up references without the GIL. It hangs instead, as from 3.14 on.
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

}  // namespace layernorm::python
