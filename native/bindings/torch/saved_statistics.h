// The statistics that PyTorch's own autograd saves between native_layer_norm and its backward: a
// mean and a rstd, in 16 bits where x and the parameters are. The backward needs float32 ones and
// the mean's residual. They follow the mean in its storage, where nobody looks, and are taken from
// there if the mean and the rstd that come back are still theirs.
#pragma once

#include "tensor.h"

namespace layernorm::torch {

struct SavedRows {
  int64_t axes;
  const int64_t* sizes;  // of mean and rstd
  int64_t rows;
  DataType shown;    // the type of mean and rstd
  DataType compute;  // the type of what follows the mean
};

// A mean with room behind it, and where the kernels write what goes there.
Tensor empty_mean(const SavedRows& saved, double eps, Statistics* room);

// Copies statistics of the compute type into a mean or rstd that is shown.
void show(const SavedRows& saved, const void* values, const Tensor& shown);

// What follows the mean: false where there is nothing, or where it is not that of these two.
bool find_behind(const Tensor& mean, const Tensor& rstd, int64_t rows, DataType compute,
                 Statistics* found, double* eps);

}  // namespace layernorm::torch
