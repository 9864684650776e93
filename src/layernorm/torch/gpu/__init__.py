"""PyTorch's front end on GPUs: the Triton kernels as operators of `layernorm.torch`."""
