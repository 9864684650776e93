"""A model, its norms, and calls of them, which can be made again."""

import copy
import inspect as signatures
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from layernorm.inspection.findings import Norm
from layernorm.torch.conversion.converted import (
    Found,
    Recognized,
)

FUNCTIONS: dict[Any, str] = {
    nn.functional.layer_norm: "layer_norm",
    nn.functional.rms_norm: "rms_norm",
}
"""PyTorch's functions, and what they compute."""


@dataclass
class Watched:
    """A norm of the model.

    Attributes:
        entry: of the report.
        module: None for a function.
        found: what `convert` makes of it, or made of it.
        to_convert: whether it would.
        call: the first call.
        y: the place of its result in the graph, which an operation in place may move on.
        seconds: in all calls of a forward.
        place: in the order of first calls.
    """

    entry: Norm
    module: nn.Module | None
    found: Found | None = None
    to_convert: bool = False
    function: Any = None
    call: "Call | None" = None
    y: Any = None
    dy: Tensor | None = None
    seconds: list[float] = field(default_factory=list)
    place: int = 0


@dataclass(frozen=True)
class Call:
    """The arguments of a call, and what it returned: copies without a graph.

    Attributes:
        autocast: the arguments of torch.autocast for it to be as it was.
    """

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    y: Tensor
    total: Tensor | None
    autocast: dict[str, Any]

    @property
    def x(self) -> Tensor:
        """The first tensor among the arguments."""
        return next(each for each in (*self.args, *self.keywords.values()) if is_tensor(each))

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return the call with other tensors in the place of x and of those of its shape."""
        shape = self.x.shape

        def changed(each: Any) -> Any:
            return change(each) if is_tensor(each) and each.shape == shape else each

        args, keywords = tree_map(changed, (self.args, self.keywords))
        return replace(self, args=args, keywords=keywords)


class Runner:
    """Calls the model, always in the same way."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any], keywords: dict[str, Any]) -> None:
        self.model = model
        self._given = (inputs, keywords)
        tensors = [*model.parameters(), *model.buffers(), *tree_leaves(self._given)]
        self.device = next((each.device for each in tensors if isinstance(each, Tensor)), "cpu")

    def __call__(self) -> Any:
        """Return what the model returns for copies of the inputs, which it may change."""
        copies: dict[int, Any] = {}  # what is given twice is one object in the copies too
        args, keywords = tree_map(lambda each: _copy_of_input(each, copies), self._given)
        torch.manual_seed(0)
        return self.model(*args, **keywords)

    def differentiate(self, wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Call the model; return the gradients of the tensors."""
        return gradients_of(self(), wanted)

    def synchronize(self) -> None:
        """Wait for the device."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()


def parameters_of(watched: Watched, call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight and the bias that the call used."""
    module, found = watched.module, watched.found
    if module is None:
        given = arguments_of(watched.function, call)
        return given.get("weight"), given.get("bias")
    if isinstance(found, Recognized):
        return found.parameters(module)[:2]
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    return (weight if is_tensor(weight) else None), (bias if is_tensor(bias) else None)


def arguments_of(function: Any, call: Call) -> dict[str, Any]:
    """Return the call's arguments by name, with the defaults."""
    bound = signatures.signature(function).bind(*call.args, **call.keywords)
    bound.apply_defaults()
    return bound.arguments


def repeat(watched: Watched, call: Call) -> Tensor:
    """Make a call of the norm, and return y."""
    called = watched.function if watched.module is None else watched.module
    with torch.autocast(**call.autocast):
        result = called(*call.args, **call.keywords)
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y


def autocast_of(device: str) -> dict[str, Any]:
    """Return the arguments of torch.autocast that give its state as it is."""
    return {
        "device_type": device,
        "dtype": torch.get_autocast_dtype(device),
        "enabled": torch.is_autocast_enabled(device),
        "cache_enabled": torch.is_autocast_cache_enabled(),
    }


def gradients_of(output: Any, wanted: Sequence[Any]) -> Sequence[Tensor | None]:
    """Return the gradients of the tensors, for random gradients of the output."""
    outputs = [each for each in leaves_of(output) if is_tensor(each) and each.requires_grad]
    if not outputs or not wanted:
        return [None] * len(wanted)
    dys = [random_like(each) for each in outputs]
    return torch.autograd.grad(outputs, wanted, dys, allow_unused=True)


def is_tensor(given: object) -> bool:
    """Tell a floating-point tensor from the rest."""
    return isinstance(given, Tensor) and given.is_floating_point() and not given.is_nested


def leaves_of(output: Any) -> Iterable[Any]:
    """Yield what is in the output; PyTorch does not look into dataclasses."""
    for each in tree_leaves(output):
        if is_dataclass(each) and not isinstance(each, type):
            yield from leaves_of([getattr(each, part.name) for part in fields(each)])
        else:
            yield each


def copied(given: Any) -> Any:
    """Return a tensor of the same numbers, without a graph; any other object itself."""
    if not isinstance(given, Tensor):
        return given
    with torch.inference_mode(False):
        return given.detach().clone().requires_grad_(given.requires_grad)


def _copy_of_input(given: Any, copies: dict[int, Any]) -> Any:
    """Return a copy; an object that cannot be copied itself."""
    if isinstance(given, Tensor):
        if id(given) not in copies:
            copies[id(given)] = copied(given)
        return copies[id(given)]
    try:
        return copy.deepcopy(given, copies)
    except Exception:
        return given


def random_like(given: Tensor) -> Tensor:
    """Return normal numbers of the tensor's shape and type, always the same."""
    random = torch.Generator().manual_seed(0)
    numbers = torch.randn(given.shape, generator=random, dtype=torch.float32)
    return numbers.to(given.device, given.dtype)


def type_of(given: Tensor) -> str:
    """Return the name of the tensor's type."""
    return str(given.dtype).removeprefix("torch.")


def to_array(given: Tensor | None) -> Any:
    """Return the numbers in NumPy.

    Raises: ImportError for bfloat16 where ml_dtypes is not installed.
    """
    if given is None:
        return None
    given = given.detach().cpu()
    if given.dtype != torch.bfloat16:
        return given.numpy()
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ImportError(
            "the errors of bfloat16 are measured with ml_dtypes, which is not installed: "
            "pip install ml_dtypes"
        ) from None
    return given.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
