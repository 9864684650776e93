"""What the primitives compile to: the kernels on the CPU, the formulas on other devices.

The platform, and how arrays are sharded, are known only when a program is compiled. So the
primitives become the partitioned calls of sharding.py. On each device these call two further
primitives, which have a lowering rule for each platform.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir

from layernorm import _native
from layernorm.callers import is_called_from
from layernorm.jax import batching, formulas, primitives, sharding
from layernorm.jax.definition import Definition
from layernorm.jax.primitives import backward_p, forward_p, tangent_p
from layernorm.jax.sharding import local_backward_p, local_forward_p

for _name, _handler in _native.xla_handlers().items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")


def _attributes(definition: Definition) -> dict[str, Any]:
    gating = definition.gating
    return {
        "has_gate": np.bool_(definition.has_gate),
        "is_silu": np.bool_(gating is not None and gating.activation == "silu"),
        "norm_first": np.bool_(gating is not None and gating.norm_first),
        "axes": _bits(definition.axes),
        "varying": _bits(definition.varying),
        "eps": np.float64(definition.eps),
        "centered": np.bool_(definition.centered),
        "zero_centered_weight": np.bool_(definition.zero_centered_weight),
    }


def _bits(axes: Sequence[int]) -> np.int64:
    return np.uint64(sum(1 << axis for axis in axes)).astype(np.int64)


def _call_forward(
    ctx: Any,
    x: Any,
    *others: Any,
    definition: Definition,
    has_addend: bool,
    has_weight: bool,
    has_bias: bool,
    with_statistics: bool,
) -> Any:
    return jax.ffi.ffi_lowering("layernorm_forward")(
        ctx,
        x,
        *others,
        **_attributes(definition),
        has_addend=np.bool_(has_addend),
        has_weight=np.bool_(has_weight),
        has_bias=np.bool_(has_bias),
    )


def _call_backward(
    ctx: Any,
    dy: Any,
    *others: Any,
    definition: Definition,
    has_dtotal: bool,
    need: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    parameter_type: Any,
) -> Any:
    return jax.ffi.ffi_lowering("layernorm_backward")(
        ctx,
        dy,
        *others,
        **_attributes(definition),
        has_dtotal=np.bool_(has_dtotal),
        has_weight=np.bool_(has_weight),
        has_bias=np.bool_(has_bias),
        **{f"need_{name}": np.bool_(each) for name, each in zip(_GRADIENTS, need, strict=True)},
    )


_GRADIENTS = ("dx", "dweight", "dbias", "dgate")


def _or_formula_in_export(partitioned: Any, formula: Any) -> Any:
    """Lower to the partitioned call, but to the formula where an export cannot hold the call.

    A call for several devices holds a Python function, which cannot be serialized. Keras's files
    must run without this package.
    """
    lower_partitioned, lower_formula = mlir.lower_fun(partitioned), mlir.lower_fun(formula)

    def lower(ctx: Any, *operands: Any, **params: Any) -> Any:
        module = ctx.module_context
        is_exported = getattr(module.lowering_parameters, "for_export", False)
        # Within a shard_map over all axes there is no such number: the call sees one device.
        devices = getattr(module.axis_context, "num_devices", 1) or 1
        is_formula = is_exported and (devices > 1 or is_called_from("keras.src.export."))
        is_formula = is_formula and not params["definition"].across  # which is no partitioned call
        lower_it = lower_formula if is_formula else lower_partitioned
        return lower_it(ctx, *operands, **params)

    return lower


mlir.register_lowering(forward_p, _or_formula_in_export(sharding.forward, formulas.forward))
mlir.register_lowering(backward_p, _or_formula_in_export(sharding.backward, formulas.backward))
mlir.register_lowering(tangent_p, mlir.lower_fun(batching.tangent))
local_forward_p.def_abstract_eval(primitives.forward_shapes)
local_backward_p.def_abstract_eval(primitives.backward_shapes)
mlir.register_lowering(local_forward_p, mlir.lower_fun(formulas.forward))
mlir.register_lowering(local_backward_p, mlir.lower_fun(formulas.backward))
mlir.register_lowering(local_forward_p, _call_forward, platform="cpu")
mlir.register_lowering(local_backward_p, _call_backward, platform="cpu")
