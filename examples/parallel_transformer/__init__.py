"""Tensor and sequence parallelism in PyTorch: a small transformer on four processes and on one."""
