#include "saved_statistics.h"

#include <cstring>

namespace layernorm::torch {
namespace {

struct Header {
  char mark[16];
  double eps;
  int64_t rows;
};

constexpr char kMark[16] = {'l', 'a',    'y',    'e',    'r',    'n',    'o',    'r',
                            'm', '\x8f', '\x1d', '\xe6', '\x52', '\xb9', '\x04', '\xc3'};

int64_t padded(int64_t bytes) { return (bytes + 15) / 16 * 16; }

int64_t header_offset(int64_t rows, DataType shown) { return padded(rows * size_of(shown)); }

int64_t storage_bytes(int64_t rows, DataType shown, DataType compute) {
  return header_offset(rows, shown) + static_cast<int64_t>(sizeof(Header)) +
         padded(3 * rows * size_of(compute));
}

Statistics behind(char* header, int64_t rows, DataType compute) {
  char* first = header + sizeof(Header);
  const int64_t bytes = rows * size_of(compute);
  return {first, first + bytes, first + 2 * bytes};
}

bool shows(const Tensor& shown, const void* values, int64_t rows, DataType compute) {
  const int64_t axes = shown.axes();
  DataType type;
  if (!shown.data_type(&type) || shown.elements() != rows || !shown.is_contiguous()) return false;
  const auto bytes = static_cast<size_t>(rows * size_of(type));
  if (type == compute) return std::memcmp(shown.read(), values, bytes) == 0;
  const Tensor again = empty_contiguous(axes, shown.sizes(), type);
  show({axes, shown.sizes(), rows, type, compute}, values, again);
  return std::memcmp(shown.read(), again.read(), bytes) == 0;
}

}  // namespace

Tensor empty_mean(const SavedRows& saved, double eps, Statistics* room) {
  const int64_t elements =
      storage_bytes(saved.rows, saved.shown, saved.compute) / size_of(saved.shown);
  const Tensor whole = empty_contiguous(1, &elements, saved.shown);
  Header header = {{}, eps, saved.rows};
  std::memcpy(header.mark, kMark, sizeof(kMark));
  char* at = static_cast<char*>(whole.write()) + header_offset(saved.rows, saved.shown);
  std::memcpy(at, &header, sizeof(header));
  *room = behind(at, saved.rows, saved.compute);
  int64_t strides[kMostAxes];
  contiguous_strides(saved.axes, saved.sizes, strides);
  TensorHandle mean = nullptr;
  check(c_api.aoti_torch__reinterpret_tensor(whole.handle(), saved.axes, saved.sizes, strides, 0,
                                             &mean));
  return Tensor(mean);
}

void show(const SavedRows& saved, const void* values, const Tensor& shown) {
  const auto bytes = static_cast<size_t>(saved.rows * size_of(saved.compute));
  if (saved.shown == saved.compute) {
    std::memcpy(shown.write(), values, bytes);
    return;
  }
  const Tensor wide = empty_contiguous(saved.axes, saved.sizes, saved.compute);
  std::memcpy(wide.write(), values, bytes);
  shown.copy_from(wide);
}

bool find_behind(const Tensor& mean, const Tensor& rstd, int64_t rows, DataType compute,
                 Statistics* found, double* eps) {
  DataType shown;
  int64_t offset = 0, bytes = 0;
  if (!mean.is_plain() || !rstd.is_plain() || !mean.data_type(&shown)) return false;
  check(c_api.aoti_torch_get_storage_offset(mean.handle(), &offset));
  check(c_api.aoti_torch_get_storage_size(mean.handle(), &bytes));
  if (offset != 0 || bytes != storage_bytes(rows, shown, compute)) return false;
  // Only read: the backward's kernels write no statistics.
  char* at = const_cast<char*>(static_cast<const char*>(mean.read())) + header_offset(rows, shown);
  Header header;
  std::memcpy(&header, at, sizeof(header));
  if (std::memcmp(header.mark, kMark, sizeof(kMark)) != 0 || header.rows != rows) return false;
  const Statistics kept = behind(at, rows, compute);
  if (!shows(mean, kept.mean, rows, compute) || !shows(rstd, kept.rstd, rows, compute))
    return false;
  *found = kept;
  *eps = header.eps;
  return true;
}

}  // namespace layernorm::torch
