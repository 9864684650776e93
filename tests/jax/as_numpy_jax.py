"""The JAX front end with the functions of `layernorm.numpy`: the contract's checks take it.

Gradients come from jax.vjp of the public functions; or all of it from the formulas that serve other
devices, compiled for the CPU here.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import Case
from jax import enable_x64
from layouts import Array

import layernorm.jax as ours
from layernorm.jax import arguments, formulas, primitives
from layernorm.jax.definition import Definition


def to_jax(array: Array | None) -> jax.Array | None:
    """Copy it to a JAX array: dense, aligned, native."""
    if array is None:
        return None
    return jnp.asarray(np.array(array, array.dtype.newbyteorder("="), order="C"))


@dataclass
class Stats:
    mean: Array | None
    rstd: Array
    residual: Array | None
    call: dict[str, Any]


@functools.partial(jax.jit, static_argnames=("kind", "options"))
def forward(x, weight, bias, *, kind: str, options: tuple[tuple[str, Any], ...]):
    """Return y of the public function, and the statistics."""
    options = dict(options)
    given = (weight, bias) if kind == "layer_norm" else (weight,)
    y = getattr(ours, kind)(x, *given, **options)
    definition = Definition(
        arguments.check(x, weight, bias, options["axis"]),
        options["eps"],
        kind == "layer_norm",
        options["zero_centered_weight"],
    )
    order = arguments.order_of(x.shape, definition.axes) or tuple(range(x.ndim))
    moved = definition._replace(axes=tuple(order.index(axis) for axis in definition.axes))
    _, *statistics = primitives.forward(
        x.transpose(order), weight, bias, moved, with_statistics=True
    )
    kept = [jnp.expand_dims(each, definition.axes) for each in statistics]
    return y, kept if kind == "layer_norm" else [None, kept[0], None]


def gradients(dy, x, weight, bias, *, kind: str, options: tuple[tuple[str, Any], ...]):
    """Return dx, dweight and (layer norm) dbias of the public function."""
    function = functools.partial(getattr(ours, kind), **dict(options))
    arguments = (x, weight, bias) if kind == "layer_norm" else (x, weight)
    return jax.vjp(function, *arguments)[1](dy)


backward = jax.jit(gradients, static_argnames=("kind", "options"))


@functools.partial(jax.jit, static_argnames=("kind", "options"))
def everything(dy, x, weight, bias, own, *, kind: str, options: tuple[tuple[str, Any], ...]):
    """Return y, the statistics and the gradients, compiled at once. `own`: see `parameters`."""
    call = {"kind": kind, "options": options}
    return forward(x, weight, bias, **call), gradients(dy, x, *own, **call)


def formula_forward(x, weight, bias, *, definition: Definition):
    return formulas.forward(
        *primitives.present(x, weight, bias),
        definition=definition,
        has_weight=weight is not None,
        has_bias=bias is not None,
        with_statistics=True,
    )


def formula_backward(dy, x, statistics, weight, *, definition, need, parameter_type):
    return formulas.backward(
        *primitives.present(dy, x, *statistics, weight),
        definition=definition,
        need=need,
        has_weight=weight is not None,
        parameter_type=parameter_type,
    )


class AsNumpy:
    """The public functions."""

    def forward_and_backward(self, case: Case, x, dy, weight, bias) -> dict[str, Array]:
        """Do what `calls.forward_and_backward` does, in one compiled program."""
        call = {"kind": case.kind, "options": tuple(case.definition.items())}
        own = parameters(x, weight, bias, **case.definition)
        with enable_x64(True):
            arrays = [to_jax(each) for each in (dy, x, weight, bias)]
            (y, statistics), found = everything(*arrays, tuple(map(to_jax, own)), **call)
            names = ("y", "mean", "rstd", "residual", "dx", "dweight", "dbias")
            results = zip(names, (y, *statistics, *found), strict=False)
            return {name: np.asarray(each) for name, each in results if each is not None}

    def layer_norm_forward(self, x: Array, weight=None, bias=None, **options: Any):
        return self._forward("layer_norm", x, weight, bias, **options)

    def rms_norm_forward(self, x: Array, weight=None, **options: Any):
        return self._forward("rms_norm", x, weight, None, **options)

    def layer_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **_: Any):
        return self._backward("layer_norm", dy, x, stats, weight)

    def rms_norm_backward(self, dy: Array, x: Array, stats: Stats, weight=None, **_: Any):
        return self._backward("rms_norm", dy, x, stats, weight)

    def _forward(self, kind, x, weight, bias, **options):
        options = {"axis": -1, "eps": 1e-5, "zero_centered_weight": False} | options
        call = {"kind": kind, "options": tuple(options.items())}
        with enable_x64(True):
            y, statistics = forward(to_jax(x), to_jax(weight), to_jax(bias), **call)
            saved = [None if each is None else np.asarray(each) for each in statistics]
            return np.asarray(y), Stats(*saved, call | {"bias": bias})

    def _backward(self, kind, dy, x, stats, weight):
        call = dict(stats.call)
        bias = call.pop("bias")
        weight, bias = parameters(x, weight, bias, **dict(call["options"]))
        with enable_x64(True):
            arrays = map(to_jax, (dy, x, weight, bias if kind == "layer_norm" else None))
            return tuple(np.asarray(each) for each in backward(*arrays, **call))


def parameters(x, weight, bias, *, axis, zero_centered_weight, **_):
    """Return weight and bias, ones and zeros where there are none: they change no bit of dx."""
    given = bias if weight is None else weight
    dtype = x.dtype.newbyteorder("=") if given is None else given.dtype
    shape = [x.shape[each] for each in sorted(each % x.ndim for each in np.atleast_1d(axis))]
    if weight is None:
        weight = np.full(shape, 0.0 if zero_centered_weight else 1.0).astype(dtype)
    if bias is None:
        bias = np.zeros(shape).astype(dtype)
    return weight, bias


class FormulasAsNumpy(AsNumpy):
    """The formulas for devices that have no kernels, compiled by XLA for the CPU."""

    run_forward = staticmethod(jax.jit(formula_forward, static_argnames="definition"))
    run_backward = staticmethod(
        jax.jit(formula_backward, static_argnames=("definition", "need", "parameter_type"))
    )
    take = staticmethod(to_jax)

    def _forward(self, kind, x, weight, bias, *, axis, eps=1e-5, zero_centered_weight=False):
        axes = tuple(sorted(each % x.ndim for each in np.atleast_1d(axis).tolist()))
        definition = Definition(axes, eps, kind == "layer_norm", zero_centered_weight)
        call = {"definition": definition, "axis": axis, "bias": bias}
        with enable_x64(True):
            arrays = map(self.take, (x, weight, bias))
            results = self.run_forward(*arrays, definition=definition)
        y, *statistics = map(np.asarray, results)
        kept = [np.expand_dims(each, axes) for each in statistics]
        mean, rstd, residual = kept if definition.centered else (None, *kept, None)
        return y, Stats(mean, rstd, residual, call)

    def _backward(self, kind, dy, x, stats, weight):
        definition, axis, bias = (stats.call[name] for name in ("definition", "axis", "bias"))
        zero_centered = definition.zero_centered_weight
        own, _ = parameters(x, weight, bias, axis=axis, zero_centered_weight=zero_centered)
        saved = [each for each in (stats.mean, stats.rstd, stats.residual) if each is not None]
        with enable_x64(True):
            results = self.run_backward(
                self.take(dy),
                self.take(x),
                [self.take(each.squeeze(definition.axes)) for each in saved],
                self.take(weight),
                definition=definition,
                need=(True, True, kind == "layer_norm"),
                parameter_type=own.dtype,
            )
        return tuple(map(np.asarray, results))


class FormulasByNumpy(FormulasAsNumpy):
    """The same, where `jnp` has been made NumPy: nothing flushes subnormal numbers."""

    run_forward = staticmethod(formula_forward)
    run_backward = staticmethod(formula_backward)
    take = staticmethod(lambda array: array)
