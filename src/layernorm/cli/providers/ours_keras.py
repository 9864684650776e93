"""layernorm.keras as a provider."""

from typing import Any, ClassVar

from layernorm.cli.providers.jitted import Keras


class OursKeras(Keras):
    """`layernorm.keras.LayerNormalization` on the JAX backend, compiled as Keras's own."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def layers(self) -> Any:
        """Find our layers, once Keras has its backend."""
        from layernorm import keras as front_end

        return front_end
