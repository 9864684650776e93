"""The gate of a call as the GPU kernels see it."""

from typing import NamedTuple

from torch import Tensor

from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import views
from layernorm.torch.gpu.axis_order import AxisOrder, Strides
from layernorm.torch.gpu.views import View


class Gate(NamedTuple):
    """The gate, and the activations by which it multiplies x or y; None where it does not."""

    view: View | None = None  # None: there is no gate
    of_x: str | None = None
    of_y: str | None = None

    @classmethod
    def of(
        cls, gate: Tensor | None, definition: Definition, order: AxisOrder, *, vector: bool
    ) -> "Gate":
        """View a gate of x's shape and type, in the place that the definition gives it."""
        if gate is None:
            return cls()
        view = views.to_read(gate, order, vector=vector)
        activation = "silu" if definition.silu else "sigmoid"
        if definition.norm_before_gate:
            return cls(view, of_y=activation)
        return cls(view, of_x=activation)

    @property
    def tensor(self) -> Tensor | None:
        """The tensor of the view, if there is one."""
        return views.tensor_of(self.view)

    @property
    def strides(self) -> Strides:
        """The strides of the view, or zeros."""
        return views.strides_of(self.view)

    @property
    def constants(self) -> dict[str, str | None]:
        """The constants of a kernel with GATE_X and GATE_Y."""
        return {"GATE_X": self.of_x, "GATE_Y": self.of_y}
