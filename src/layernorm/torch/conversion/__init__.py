"""`convert`: the norms of an existing model run our kernels, after trials that they may."""
