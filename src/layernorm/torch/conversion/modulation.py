"""Recognizes modules that modulate the results of norms inside of them: adaptive norms.

`torch.fx` traces the forward, with functions in place of the modules that it calls. Where a norm's
result is multiplied by a tensor, and one is added, a call of `modulated` takes their place. Trials
then compare the two forwards: what they return, and what they give to the other modules.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from operator import add, mul
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.proxy import GraphAppendingTracer, Proxy
from torch.overrides import _pop_mode_temporarily
from torch.utils._pytree import tree_leaves

from layernorm.torch.arguments import TYPES
from layernorm.torch.conversion.converted import PyTorchs, Recognized, converted_class, original_of
from layernorm.torch.conversion.modulated import Modulated, class_or_value, modulated
from layernorm.torch.conversion.recognition import can_be_traced
from layernorm.torch.conversion.trial import (
    Call,
    UnfitError,
    compare,
    isolated,
    normal,
    noting,
    stand_in,
    state_of,
)

Norms = Mapping[str, PyTorchs | Recognized]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_CALLS = [
    Call((), x_type=each, parameter_type=each, autocast=autocast, training=autocast)
    for each, autocast in product(TYPES, (False, True))
] + [Call((), training=True)]


def find_modulation(module: nn.Module, norms: Norms) -> Modulated | None:
    """Return the forward with each norm and its modulation in one call; None if there is none.

    Args:
        module: neither it nor its modules are called.
        norms: what the norms among its modules compute, by name.
    """
    if not norms or not can_be_traced(module):
        return None
    with isolated():
        try:
            return _Modulation(module, norms).found()
        except (UnfitError, Exception):  # whatever a class of somebody else raises
            return None


class _Modulation:
    """The search in one module. Its methods raise what the forward raises."""

    def __init__(self, module: nn.Module, norms: Norms) -> None:
        self._module, self._norms = module, norms
        self._forward: Any = type(module).forward
        self._read: set[str] = set()
        self._noting_class = noting(type(module), self._read)
        self._defaults = {
            each.name: each.default
            for each in list(inspect.signature(self._forward).parameters.values())[1:]
        }

    def found(self) -> Modulated | None:
        """Return the new forward."""
        others = {
            name: default
            for name, default in self._defaults.items()
            if default is not None and default is not inspect.Parameter.empty
        }
        # Arguments without effect stay None, if that is their default.
        for node in self._trace(others).find_nodes(op="placeholder"):
            if not node.users and self._defaults[node.target] is None:
                others[node.target] = None
        graph = self._trace(others)
        sizes = self._sizes_of_x(graph)
        if not self._fuse(graph):
            return None
        given = tuple(name for name in self._defaults if name not in others)
        new = _written(graph, given, tuple(others.items()))
        # The conditioning has a row for each sample, or is one vector for all.
        for outer in ((2,), ()):
            of_others = (*outer, *max(sizes.values()))
            shapes = {name: (2, 3, *sizes[name]) if name in sizes else of_others for name in given}
            with suppress(RuntimeError):  # as PyTorch raises for shapes
                if self._is_same(new.forward(), shapes, outer):
                    return replace(new, reads=self._reads())
        return None

    def _reads(self) -> tuple[tuple[str, Any], ...]:
        names = sorted(self._read - self._norms.keys())
        return tuple((name, class_or_value(self._module, name)) for name in names)

    def _trace(self, others: dict[str, Any]) -> Graph:
        """Trace the forward, with values for the `others` among its arguments."""
        graph = Graph()
        tracer = GraphAppendingTracer(graph)

        def traced(name: str) -> Callable[..., Any]:
            return lambda *args, **kwargs: tracer.create_proxy("call_module", name, args, kwargs)

        proxies = {
            name: Proxy(graph.placeholder(name, default_value=default), tracer)
            for name, default in self._defaults.items()
        }
        made = self._stand_in(Call(()), self._noting_class, traced)
        with _seeing_functions():
            results = self._forward(made, **(proxies | others))
        graph.output(tracer.create_arg(results))
        return graph

    def _stand_in(self, call: Call, kind: Any, child: Callable[[str], Any]) -> nn.Module:
        """Make a module of a class with `child(name)` for each module that the original has."""
        made = stand_in(self._module, call, kind)
        modules = self._module._modules.items()
        vars(made)["_modules"] = {name: each and child(name) for name, each in modules}
        return made

    def _norms_in(self, graph: Graph) -> list[Node]:
        calls = graph.find_nodes(op="call_module")
        return [each for each in calls if each.target in self._norms and not each.kwargs]

    def _sizes_of_x(self, graph: Graph) -> dict[str, Shape]:
        """Return the normalized sizes of the arguments that norms are given, by name."""
        sizes: dict[str, Shape] = {}
        for norm in self._norms_in(graph):
            parts: Any = self._norms[norm.target].parts(self._module._modules[norm.target])
            waiting = [norm]
            while waiting:
                node = waiting.pop()
                waiting += node.all_input_nodes
                if node.op == "placeholder":
                    sizes[node.target] = (8,) if parts.sizes is None else tuple(parts.sizes)
        return sizes

    def _fuse(self, graph: Graph) -> bool:
        """Put calls of `modulated` into the graph, and tell whether there are any."""
        is_changed = False
        for norm in self._norms_in(graph):
            (x,) = norm.args
            products = list(norm.users)
            factors = [_other_operand(each, mul, norm) for each in products]
            if None in factors:
                continue
            for last, factor in zip(products, factors, strict=True):
                total = next(iter(last.users)) if len(last.users) == 1 else None
                shift = total and _other_operand(total, add, last)
                replaced = [total, last] if shift else [last]
                with graph.inserting_before(replaced[0]):
                    module = graph.create_node("get_attr", norm.target)
                    call = graph.call_function(modulated, (module, x, factor, shift))
                replaced[0].replace_all_uses_with(call)
                for each in replaced:
                    graph.erase_node(each)
                is_changed = True
            graph.erase_node(norm)
        return is_changed

    def _is_same(self, new: Any, shapes: Shapes, outer: Shape) -> bool:
        """Tell whether both forwards do the same in all trials."""
        for call, has_gradients in product(_CALLS, (True, False)):
            with torch.set_grad_enabled(has_gradients):
                theirs = self._run(self._forward, call, shapes, outer, self._noting_class)
                mine = self._run(new, call, shapes, outer)
            for got, expected in zip(mine, theirs, strict=True):
                if compare(got, expected, call):
                    return False
        return True

    def _run(
        self, forward: Any, call: Call, shapes: Shapes, outer: Shape, noting_class: Any = None
    ) -> list[list[Tensor | None]]:
        """Return what the forward returns and gives to other modules; one with all gradients.

        The other modules return random numbers. Without `noting_class` the norms are converted.
        """
        leaves: list[Tensor] = []
        values: list[Tensor] = []

        def leaf(shape: Shape) -> Tensor:
            values = normal(shape, len(leaves)) * 3 + 2
            leaves.append(values.to(call.x_type).requires_grad_())
            return leaves[-1]

        def child(name: str) -> Any:
            module: Any = self._module._modules[name]
            if name not in self._norms:
                return partial(other, (*outer, _last_size(module, shapes)))
            norm = stand_in(module, call, original_of(module))
            leaves.extend(norm.parameters())
            if noting_class is None:
                norm.__class__ = converted_class(type(norm), self._norms[name])
            return norm

        def other(shape: Shape, *args: Any, **kwargs: Any) -> Tensor:
            note((args, kwargs))
            return leaf(shape)

        def note(given: Any) -> None:
            values.extend(each for each in tree_leaves(given) if isinstance(each, Tensor))

        made = self._stand_in(call, noting_class, child)
        inputs = {name: leaf(shape) for name, shape in shapes.items()}
        before = state_of(made, [])
        with torch.autocast("cpu", torch.bfloat16, enabled=call.autocast):
            note(forward(made, **inputs))
        if state_of(made, []) != before:
            raise UnfitError("changes its own state")
        losses = [(normal(each.shape, place) * each).sum() for place, each in enumerate(values)]
        if torch.is_grad_enabled():
            gradients = torch.autograd.grad(sum(losses), leaves, allow_unused=True)
            return [[each.detach()] for each in values] + [[values[0].detach(), *gradients]]
        return [[each] for each in values]


@contextmanager
def _seeing_functions() -> Iterator[None]:
    """Let proxies see functions, which `isolated` hides from them, but no mode of the caller's."""
    with torch._C._EnableTorchFunction(), ExitStack() as stack:
        for _ in range(torch._C._len_torch_function_stack()):
            stack.enter_context(_pop_mode_temporarily())
        yield


def _last_size(module: nn.Module, shapes: Shapes) -> int:
    """Return the size of the last axis of what a module returns: that of its last linear layer."""
    sizes = [each.out_features for each in module.modules() if hasattr(each, "out_features")]
    return sizes[-1] if sizes else max(shapes.values())[-1]


def _other_operand(node: Node, operation: Any, operand: Node) -> Node | None:
    """Return what the operation takes beside `operand`, if it is that and takes a tensor."""
    others = [each for each in node.args if each is not operand]
    is_it = node.target is operation and len(others) == 1 and isinstance(others[0], Node)
    return others[0] if is_it else None


def _written(
    graph: Graph, given: tuple[str, ...], others: tuple[tuple[str, Any], ...]
) -> Modulated:
    """Return the graph as a forward in Python."""
    code = graph.python_code("self")
    names = {each.id for each in ast.walk(ast.parse(code.src)) if isinstance(each, ast.Name)}
    outside = {name: code.globals[name] for name in sorted(names & code.globals.keys() - {"torch"})}
    return Modulated(code.src.strip(), tuple(outside.items()), given, others)
