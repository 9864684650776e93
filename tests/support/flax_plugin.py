"""A pytest plugin that puts our classes under Flax's names before Flax's tests are imported."""

import flax.linen
import flax.nnx

from layernorm.flax import linen, nnx

for _theirs, _ours in ((flax.linen, linen), (flax.nnx, nnx)):
    for _name in ("LayerNorm", "RMSNorm"):
        setattr(_theirs, _name, getattr(_ours, _name))
