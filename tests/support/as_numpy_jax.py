"""The JAX front end behind the functions of `layernorm.numpy`, for the contract's checks.

`AsNumpy` calls the public functions, and jax.vjp of them. `FormulasAsNumpy` calls the formulas for
other devices, compiled for the CPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from adapter import Adapter, Stats, parameters
from cases import Case
from jax_renamed import enable_x64
from layouts import Array, axes_of, dense

import layernorm.jax as ours
from layernorm.jax import arguments, formulas, primitives
from layernorm.jax.definition import Definition


def to_jax(array: Array | None) -> jax.Array | None:
    return None if array is None else jnp.asarray(dense(array))


@functools.partial(jax.jit, static_argnames=("kind", "options"))
def forward(x, weight, bias, *, kind: str, options: tuple[tuple[str, Any], ...]):
    """Return y of the public function, and the statistics."""
    options = dict(options)
    given = (weight, bias) if kind == "layer_norm" else (weight,)
    y = getattr(ours, kind)(x, *given, **options)
    definition = arguments.define(x, weight, bias, centered=kind == "layer_norm", **options)
    order = arguments.order_of(x.shape, definition)
    weight, bias = arguments.compact_parameters(x, (weight, bias), definition)
    _, *statistics = primitives.forward(
        x.transpose(order), weight, bias, definition.moved(order), with_statistics=True
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
    """Return y, the statistics and the gradients, from one program. `own`: see `parameters`."""
    call = {"kind": kind, "options": options}
    return forward(x, weight, bias, **call), gradients(dy, x, *own, **call)


def formula_forward(x, weight, bias, addend=None, gate=None, scale=None, *, definition: Definition):
    return formulas.forward(
        *primitives.present(x, addend, gate, weight, bias, scale),
        definition=definition,
        has_addend=addend is not None,
        has_weight=weight is not None,
        has_bias=bias is not None,
        with_statistics=definition.quantizing is None,
    )


def formula_backward(
    dy,
    x,
    statistics,
    weight,
    dtotal=None,
    gate=None,
    bias=None,
    *,
    definition,
    need,
    parameter_type,
):
    """Return the gradients needed: of x, weight, bias and, with a gate, the gate."""
    return formulas.backward(
        *primitives.present(dy, dtotal, x, gate, *statistics, weight, bias),
        definition=definition,
        has_dtotal=dtotal is not None,
        need=(*need, gate is not None),
        has_weight=weight is not None,
        has_bias=bias is not None,
        parameter_type=parameter_type,
    )


def compact_formulas(kind: str, x, weight, bias, dy, axis):
    """Return y, dx, dweight and dbias by the formulas, for any parameters that broadcast."""
    centered = kind == "layer_norm"
    given = tuple(each is not None for each in (weight, bias))

    @jax.jit
    def forward_and_backward(x, weight, bias, dy):
        definition = arguments.define(
            *(x, weight, bias),
            axis=axis,
            eps=1e-5,
            centered=centered,
            zero_centered_weight=False,
        )
        order = arguments.order_of(x.shape, definition)
        back = [order.index(each) for each in range(x.ndim)]

        def compact(weight, bias):
            return arguments.compact_parameters(x, (weight, bias), definition)

        (weight, bias), transposed = jax.vjp(compact, weight, bias)
        moved = definition.moved(order)
        y, *statistics = formula_forward(x.transpose(order), weight, bias, definition=moved)
        dx, *gradients = formula_backward(
            dy.transpose(order),
            x.transpose(order),
            statistics,
            weight,
            definition=moved,
            need=(True, *given),
            parameter_type=next(each.dtype for each in (weight, bias, x) if each is not None),
        )
        gradients = transposed(primitives.spaced(gradients, given))
        return y.transpose(back), dx.transpose(back), *gradients

    return forward_and_backward(x, weight, bias, dy)


# tests/jax/conftest.py turns these off.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}


class AsNumpy(Adapter):
    """The public functions."""

    def forward_and_backward(self, case: Case, x, dy, weight, bias) -> dict[str, Array]:
        """Replace `calls.forward_and_backward` by one compiled program."""
        call = {"kind": case.kind, "options": tuple(case.definition.items())}
        own = parameters(x, weight, bias, **case.definition)
        with enable_x64(True):
            arrays = [to_jax(each) for each in (dy, x, weight, bias)]
            (y, statistics), found = everything(*arrays, tuple(map(to_jax, own)), **call)
            names = ("y", "mean", "rstd", "residual", "dx", "dweight", "dbias")
            results = zip(names, (y, *statistics, *found), strict=False)
            return {name: np.asarray(each) for name, each in results if each is not None}

    def _forward(self, x, weight, bias, *, centered, **options):
        options = {"axis": -1, "eps": 1e-5, "zero_centered_weight": False} | options
        kind = "layer_norm" if centered else "rms_norm"
        call = {"kind": kind, "options": tuple(options.items())}
        with enable_x64(True):
            y, statistics = forward(to_jax(x), to_jax(weight), to_jax(bias), **call)
            saved = [None if each is None else np.asarray(each) for each in statistics]
            return np.asarray(y), Stats(call, bias, *saved)

    def _backward(self, dy, x, stats, weight):
        own = parameters(x, weight, stats.bias, **dict(stats.call["options"]))
        with enable_x64(True):
            results = backward(*map(to_jax, (dy, x, *own)), **stats.call)
            return tuple(np.asarray(each) for each in results)


class FormulasAsNumpy(AsNumpy):
    """The formulas for devices without kernels, compiled by XLA for the CPU."""

    run_forward = staticmethod(
        jax.jit(formula_forward, static_argnames="definition", compiler_options=OPTIMIZED)
    )
    run_backward = staticmethod(
        jax.jit(
            formula_backward,
            static_argnames=("definition", "need", "parameter_type"),
            compiler_options=OPTIMIZED,
        )
    )
    take = staticmethod(to_jax)

    def _forward(self, x, weight, bias, *, centered, axis, eps=1e-5, zero_centered_weight=False):
        axes = axes_of(axis, x.ndim)
        definition = Definition(axes, eps, centered, zero_centered_weight)
        with enable_x64(True):
            arrays = map(self.take, (x, weight, bias))
            results = self.run_forward(*arrays, definition=definition)
        y, *statistics = map(np.asarray, results)
        kept = [np.expand_dims(each, axes) for each in statistics]
        mean, rstd, residual = kept if definition.centered else (None, *kept, None)
        return y, Stats({"definition": definition}, bias, mean, rstd, residual)

    def _backward(self, dy, x, stats, weight):
        definition = stats.call["definition"]
        zero_centered = definition.zero_centered_weight
        own, _ = parameters(
            x, weight, stats.bias, axis=definition.axes, zero_centered_weight=zero_centered
        )
        saved = [each for each in (stats.mean, stats.rstd, stats.residual) if each is not None]
        with enable_x64(True):
            results = self.run_backward(
                self.take(dy),
                self.take(x),
                [self.take(each.squeeze(definition.axes)) for each in saved],
                self.take(weight),
                definition=definition,
                need=(True, True, definition.centered),
                parameter_type=own.dtype,
            )
        return tuple(map(np.asarray, results))


class FormulasByNumpy(FormulasAsNumpy):
    """The formulas where `jnp` is replaced by NumPy, which does not flush subnormal numbers."""

    run_forward = staticmethod(formula_forward)
    run_backward = staticmethod(formula_backward)
    take = staticmethod(lambda array: array)
