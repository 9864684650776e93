"""The GPU kernels, in Triton, and the configuration of their launches. Imports no framework.

`layernorm.torch.gpu` launches them. docs/gpu.md explains how they work.
"""
