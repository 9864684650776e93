// The statistics that PyTorch's own autograd saves between native_layer_norm and its backward: a
// mean and a rstd, in 16 bits where x and the parameters are. The backward needs float32 ones and
// the mean's residual. They are stored after the mean, in the same storage, and used if the mean and
// the rstd that come back are unchanged.
#pragma once

#include "tensor.h"

namespace layernorm::torch {

struct SavedRows {
  int64_t axes;
  const int64_t* sizes;  // of mean and rstd
  int64_t rows;
  DataType shown;    // the type of mean and rstd
  DataType compute;  // the type of the statistics stored after the mean
};

// A mean with memory after it, `saved`, for the kernels to write to.
Tensor empty_mean(const SavedRows& rows, double eps, Statistics* saved);

// Copies statistics of the compute type into the mean or the rstd that is shown.
void show(const SavedRows& rows, const void* values, const Tensor& shown);

// Finds what is stored after the mean: false if nothing is, or not for this mean and rstd.
bool find_saved(const Tensor& mean, const Tensor& rstd, int64_t rows, DataType compute,
                Statistics* saved, double* eps);

}  // namespace layernorm::torch
