"""The GPU kernels, in Triton: forward, backward, and the plan of their launches. No framework.

A front end calls them: `layernorm.torch` does. How they work, and where: docs/gpu.md.
"""
