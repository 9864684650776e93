"""Calls a norm of another class and ours on the same numbers, and compares what comes out.

A trial leaves no trace: it calls the class's forward on a stand-in with parameters of its own, on
the CPU, and neither reads nor changes what the caller has set (modes, default type and device,
autocast, random numbers).
"""

import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from numbers import Number
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

Forward = Callable[..., Any]  # of the module, x and, if it takes one, the gate

OTHER_RESULTS = "gives other results than ours"
RAISES = "raises"

# What a trial sets and gives back, such as the number of threads, belongs to the whole process.
_one_at_a_time = threading.RLock()

# What does nothing by itself, and can be compared.
_PLAIN = (
    *(Number, str, bytes, type(None), type(...), Enum, range, frozenset, type, FunctionType),
    *(torch.dtype, torch.device, torch.memory_format),
)

OF_EVERY_MODULE = frozenset(dir(nn.Module()))

_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


@dataclass(frozen=True)
class Call:
    """One call of a trial.

    Attributes:
        shape: of x.
        scale: of x, about.
        parameter_scale: of weight and bias, about.
        x_type, parameter_type, autocast: autocast to bfloat16.
        training: the mode of the module.
        layout: of x and the gate: "contiguous", "permuted" or "sliced".
        gate_scale, gate_type: of the gate, for a forward that takes one.
        changes: to attributes of the module.
        again: call it a second time, without gradients.
        has_nan: one row of x, another of dy, and an element of the gate are NaN.
    """

    shape: tuple[int, ...]
    scale: float = 1.0
    parameter_scale: float = 1.0
    x_type: torch.dtype = torch.float32
    parameter_type: torch.dtype = torch.float32
    autocast: bool = False
    training: bool = False
    layout: str = "contiguous"
    gate_scale: float = 1.0
    gate_type: torch.dtype = torch.float32
    changes: tuple[tuple[str, Any], ...] = ()
    again: bool = False
    has_nan: bool = False

    def x(self) -> Tensor:
        """Return an x, always the same."""
        x = ((normal(self.shape, 0) * 3 + 2) * self.scale).to(self.x_type)
        if self.has_nan:
            x[0] = float("nan")
        return _laid_out(x, self.layout)

    def gate(self) -> Tensor:
        """Return a gate, always the same."""
        gate = (normal(self.shape, 8) * 2 * self.gate_scale).to(self.gate_type)
        if self.has_nan:
            gate.view(-1)[-1] = float("nan")
        return _laid_out(gate, self.layout)

    def dy(self) -> Tensor:
        """Return a gradient of y, always the same."""
        dy = normal(self.shape, 1)
        if self.has_nan:
            dy = dy.clone()
            dy[-1] = float("nan")
        return dy


class UnfitError(BaseException):
    """Says what a forward does that rules it out; none that catches an Exception catches it.

    The words continue the sentence "a norm that ...".
    """


class _WithoutOtherProcesses(TorchDispatchMode):
    """Refuses what other processes would have to take part in."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "c10d" in function.namespace:
            raise UnfitError("communicates with other processes")
        return function(*args, **(kwargs or {}))


@contextmanager
def isolated() -> Iterator[None]:
    """Run trials, apart from all that the caller has set."""
    with (
        _one_at_a_time,
        # Importing what it needs is slow.
        _disable_current_modes() if torch._C._len_torch_dispatch_stack() else nullcontext(),
        torch._C.DisableTorchFunction(),
        # A compiled forward would be compiled again for each kind of call.
        torch.compiler.set_stance("force_eager")
        if "torch._dynamo" in sys.modules
        else nullcontext(),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more would mostly wait for each other
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            normal.cache_clear()


class Trials:
    """Trials of one module; each call of its forward is made once.

    Args:
        module: has the parameters' names and shapes, and the attributes that its forward reads.
        takes_gate: the forward is called with a gate after x.
    """

    def __init__(self, module: nn.Module, takes_gate: bool = False) -> None:
        self._module, self._takes_gate = module, takes_gate
        self._read: set[str] = set()
        self._kind = noting(type(module), self._read)
        self._known: dict[Call, list[Tensor | None] | str] = {}

    def difference(self, norm: Forward, call: Call) -> str | None:
        """Return how the class's forward differs from `norm`; None if it does not.

        The words continue the sentence "a norm that ...".
        """
        if call not in self._known:
            self._known[call] = self._observe(call)
        expected = self._known[call]
        if isinstance(expected, str):
            return expected
        inputs, dy, ours = self._inputs(call), call.dy(), stand_in(self._module, call)
        try:
            y = _y_of(norm, ours, inputs, call)
        except (RuntimeError, TypeError, ValueError):
            return OTHER_RESULTS
        if y is None:
            return OTHER_RESULTS
        reason = compare([y.detach()], expected[:1], call)
        if reason:
            return reason
        mine = [y.detach(), *_gradients(y, ours, inputs, dy)]
        return compare(mine, expected, call, len(inputs))

    def read(self) -> list[str]:
        """List the attributes that the forward has read, but for those of every module."""
        return sorted(self._read)

    def _inputs(self, call: Call) -> list[Tensor]:
        tensors = [call.x(), call.gate()] if self._takes_gate else [call.x()]
        return [each.requires_grad_() for each in tensors]

    def _observe(self, call: Call) -> list[Tensor | None] | str:
        """Return y and the gradients of the class's forward, or what rules it out."""
        forward: Any = type(self._module).forward
        inputs, dy = self._inputs(call), call.dy()
        try:
            theirs = stand_in(self._module, call, self._kind)
            before = state_of(theirs, inputs)
            with _WithoutOtherProcesses() if _has_other_processes() else nullcontext():
                y = _y_of(forward, theirs, inputs, call)
                if y is None or y.dtype != call.x_type:
                    return OTHER_RESULTS
                observed = [y.detach(), *_gradients(y, theirs, inputs, dy)]
            if call.again:
                with torch.no_grad():
                    again = _y_of(forward, theirs, inputs, call)
                if again is None or compare([again], observed[:1], call):
                    return "gives other results when called again, without gradients,"
            return observed if state_of(theirs, inputs) == before else "changes its own state"
        except UnfitError as error:
            return str(error)
        except Exception as error:  # whatever a class of somebody else raises
            return f"{RAISES} {type(error).__name__}"


@lru_cache(maxsize=32)
def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return random numbers, not to be changed: the same for the same arguments."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "permuted" and x.dim() > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced" and x.dim() > 1:
        return torch.cat([x, x], 1)[:, : x.shape[1]]
    return x


def _has_other_processes() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def noting(cls: Any, read: set[str]) -> Any:
    """Make a subclass that notes which attributes are read, and gives out no objects.

    What is done with an object, such as a counter, may have an effect that a trial cannot see.
    """

    def get(self: nn.Module, name: str) -> Any:
        is_common = name in OF_EVERY_MODULE or name.startswith("__")
        if not is_common:
            read.add(name)
        value = cls.__getattribute__(self, name)
        if is_common or isinstance(value, Tensor | MethodType) or is_plain(value):
            return value
        raise UnfitError(f"depends on its attribute {name}, which ours does not read")

    return type(cls)(cls.__name__, (cls,), {"__getattribute__": get, "__module__": cls.__module__})


def stand_in(module: nn.Module, call: Call, kind: Any = None) -> nn.Module:
    """Make a module of the same class (or `kind`) and attributes, with its own parameters."""
    made = object.__new__(kind or type(module))
    for name, value in vars(module).items():
        vars(made)[name] = _copy(value)
    for name, each in other_tensors(module):
        if is_arbitrary(each):  # a forward that reads it will differ from ours
            place = made._buffers if name in made._buffers else vars(made)
            place[name] = normal(tuple(each.shape), 9).to(each.dtype, copy=True)
    vars(made).pop("forward", None)
    vars(made)["training"] = call.training
    for seed, (name, each) in enumerate(module.named_parameters(recurse=False)):
        values = normal(tuple(each.shape), 2 + seed) * call.parameter_scale
        made._parameters[name] = nn.Parameter(values.to(call.parameter_type))
    for name, value in call.changes:
        setattr(made, name, value)
    return made


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list | set) else value


def is_plain(value: object) -> bool:
    """Tell whether a value can be compared with a copy of it, and does nothing by itself."""
    if isinstance(value, tuple | list):
        return all(is_plain(each) and not isinstance(each, list) for each in value)
    if isinstance(value, BuiltinFunctionType):  # or the method of an object, as seen.append is
        return value.__self__ is None or isinstance(value.__self__, ModuleType)
    return isinstance(value, _PLAIN)


def other_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """List a module's tensors that are not parameters."""
    plain = [(name, each) for name, each in vars(module).items() if isinstance(each, Tensor)]
    return [*module.named_buffers(recurse=False), *plain]


def is_arbitrary(tensor: Tensor) -> bool:
    """Tell whether a tensor may have any values, unlike a flag or a counter."""
    return tensor.dim() > 0 and tensor.dtype.is_floating_point


def state_of(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """Return what a forward must not change."""
    others = (each for _, each in other_tensors(module))
    tensors = [*inputs, *module.parameters(recurse=False), *others]
    kept = {
        name: _copy(value) if is_plain(value) else id(value)
        for name, value in vars(module).items()
        if name not in ("_parameters", "_modules", "_buffers")
    }
    return [each._version for each in tensors], kept


def _y_of(
    forward: Forward, module: nn.Module, inputs: Sequence[Tensor], call: Call
) -> Tensor | None:
    with torch.autocast("cpu", torch.bfloat16, enabled=call.autocast):
        y = forward(module, *inputs)
    return y if isinstance(y, Tensor) and y.shape == call.shape else None


def _gradients(
    y: Tensor, module: nn.Module, inputs: Sequence[Tensor], dy: Tensor
) -> list[Tensor | None]:
    """Return the gradients of the inputs and the parameters; None for those without."""
    tensors = [*inputs, *module.parameters(recurse=False)]
    if not y.requires_grad:
        return [None for _ in tensors]
    # Given dy itself, PyTorch would import its symbolic shapes, which is slow.
    return list(torch.autograd.grad((y * dy.to(y.dtype)).sum(), tensors, allow_unused=True))


def compare(
    got: Sequence[Tensor | None],
    expected: Sequence[Tensor | None],
    call: Call,
    number_of_inputs: int = 1,
) -> str | None:
    """Compare y, and the gradients if given, first those of the inputs.

    y may differ by a few roundings of the narrowest type. Gradients are sums of rounded
    terms; those of 16 bits tell only whether a term is missing, as float32 tells the rest.
    """
    types = [torch.float32, call.x_type, call.parameter_type, *[torch.bfloat16][: call.autocast]]
    if number_of_inputs == 2:  # y is that of an exactly widened gate, whose gradient is rounded
        types.append(call.gate_type)
    bits = min(_BITS[each] for each in types)
    of_values, of_gradients = (2.0**-18, 2.0**-14) if bits == 24 else (2.0 ** (3 - bits), 0.125)
    for place, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        is_y = place == 0
        other = OTHER_RESULTS if is_y else "gives other gradients than ours"
        if mine is None or theirs is None:
            if mine is not theirs:
                return other
            continue
        if mine.dtype != theirs.dtype or mine.shape != theirs.shape:
            return other
        if is_y:
            largest = mine.nan_to_num(0.0).abs().max().item()
            scales = (call.scale, call.gate_scale)[:number_of_inputs]
            usual = [0.0, *(largest / each if each else 0.0 for each in scales)]
        # Where dx is nearly zero, as in rows of two elements, its rounding errors are not.
        limits = (
            of_values if is_y else of_gradients,
            usual[place] if place < len(usual) else 0.0,
        )
        if not _is_close(mine.double(), theirs.double(), *limits):
            return other
        if is_y and _strides(mine) != _strides(theirs):
            return "gives results in another memory format than ours"
    return None


def _strides(y: Tensor) -> list[int]:
    return [stride for size, stride in zip(y.shape, y.stride(), strict=True) if size > 1]


def _is_close(got: Tensor, expected: Tensor, tolerance: float, scale: float) -> bool:
    if expected.numel():
        scale = max(scale, expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item())
    is_same = (got == expected) | (got.isnan() & expected.isnan())
    return bool((is_same | ((got - expected).abs() <= tolerance * scale)).all())
