// Layer norm of float32 rows as one writes it first, for plain_two_pass.py: two passes of float32
// sums and one that writes, OpenMP's threads, whatever vectors the compiler finds. It has no
// compensation, no float64 totals, and no path for rows outside the ordinary range.
#include <cmath>
#include <cstdint>
#include <vector>

extern "C" void forward(const float* x, const float* weight, const float* bias, float* y,
                        float* mean, float* rstd, int64_t rows, int64_t cols, float eps,
                        int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * cols;
    float* to = y + row * cols;
    float sum = 0, squares = 0;
    for (int64_t col = 0; col < cols; ++col) sum += from[col];
    const float m = sum / static_cast<float>(cols);
    for (int64_t col = 0; col < cols; ++col) squares += (from[col] - m) * (from[col] - m);
    const float r = 1 / std::sqrt(squares / static_cast<float>(cols) + eps);
    for (int64_t col = 0; col < cols; ++col)
      to[col] = (from[col] - m) * r * weight[col] + bias[col];
    mean[row] = m;
    rstd[row] = r;
  }
}

extern "C" void backward(const float* dy, const float* x, const float* mean, const float* rstd,
                         const float* weight, float* dx, float* dweight, float* dbias, int64_t rows,
                         int64_t cols, int threads) {
  std::vector<float> partial(static_cast<size_t>(2 * cols * threads));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t thread = 0; thread < threads; ++thread) {
    float* __restrict own_dweight = partial.data() + 2 * cols * thread;
    float* __restrict own_dbias = own_dweight + cols;
    for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) {
      const float *from = x + row * cols, *given = dy + row * cols;
      float* __restrict to = dx + row * cols;
      const float m = mean[row], r = rstd[row];
      float sum_g = 0, sum_g_xhat = 0;
      for (int64_t col = 0; col < cols; ++col) {
        const float xhat = (from[col] - m) * r, g = given[col] * weight[col];
        sum_g += g;
        sum_g_xhat += g * xhat;
        own_dweight[col] += given[col] * xhat;
        own_dbias[col] += given[col];
      }
      const float mean_g = sum_g / static_cast<float>(cols);
      const float mean_g_xhat = sum_g_xhat / static_cast<float>(cols);
      for (int64_t col = 0; col < cols; ++col) {
        const float xhat = (from[col] - m) * r;
        to[col] = (given[col] * weight[col] - mean_g - xhat * mean_g_xhat) * r;
      }
    }
  }
  for (int64_t col = 0; col < cols; ++col) {
    dweight[col] = dbias[col] = 0;
    for (int64_t thread = 0; thread < threads; ++thread) {
      dweight[col] += partial[static_cast<size_t>(2 * cols * thread + col)];
      dbias[col] += partial[static_cast<size_t>(2 * cols * thread + cols + col)];
    }
  }
}
