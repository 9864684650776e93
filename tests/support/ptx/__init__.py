"""What Triton compiles the kernels to, run on the CPU: an emulator of PTX, without a GPU."""
