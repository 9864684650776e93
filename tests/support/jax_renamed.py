"""Names that later versions of JAX have moved."""

import jax

if hasattr(jax, "enable_x64"):
    from jax import enable_x64, set_mesh
else:
    from jax.experimental import enable_x64
    from jax.sharding import use_mesh as set_mesh

__all__ = ["enable_x64", "set_mesh"]
