"""The derivatives of the primitives.

tangent_p is linear in the tangents, backward_p in dy and dtotal, and each is the other's transpose.
Their derivatives with respect to x include the effect of x on the statistics. So the statistics
have no derivatives of their own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.interpreters import ad

from layernorm.jax import derivatives
from layernorm.jax.definition import Definition
from layernorm.jax.primitives import (
    Saved,
    backward,
    backward_p,
    forward,
    forward_p,
    present,
    saved_in,
    spaced,
    tangent,
    tangent_p,
)


def _is_zero(value: Any) -> bool:
    return isinstance(value, ad.Zero)


def _nonzero(value: Any) -> Any:
    return None if value is None or _is_zero(value) else value


def _zero(result: Any) -> Any:
    return ad.Zero(jax.typeof(result).to_tangent_aval())


def _sum(terms: Sequence[Any], result: Any) -> Any:
    return functools.reduce(ad.add_tangents, terms, _zero(result))


def _forward_jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    definition: Definition,
    has_addend: bool,
    has_weight: bool,
    has_bias: bool,
    with_statistics: bool,
) -> tuple[list[Any], list[Any]]:
    given = (True, has_addend, definition.has_gate, has_weight, has_bias)
    x, addend, gate, weight, bias = spaced(primals, given)
    results = forward(x, weight, bias, definition, addend, gate, with_statistics=True)
    outputs, statistics = results[: 1 + has_addend], results[1 + has_addend :]
    of_x, of_addend, of_gate, *of_parameters = spaced(tangents, given)
    if has_addend:
        x, of_x = outputs[1], ad.add_tangents(of_x, of_addend)
    moving = [_nonzero(each) for each in (of_x, *of_parameters, of_gate)]
    saved = Saved(x, gate, statistics, weight, None if gate is None else bias)
    found = _tangents(moving, outputs, saved, definition)
    kept = statistics if with_statistics else []
    return [*outputs, *kept], [*found, *map(_zero, kept)]


def _tangents(
    linear: Sequence[Any],
    outputs: Sequence[Any],
    saved: Saved,
    definition: Definition,
) -> list[Any]:
    """Return the tangents of the outputs, y or y and total, from those that are not None."""
    found = []
    if any(each is not None for each in linear):
        with_total = len(outputs) == 2 and linear[0] is not None
        found = tangent(linear, saved, definition, with_total=with_total)
    return [*found, *map(_zero, outputs[len(found) :])]


def _through(function: Callable[[Saved], Any], saved: Saved, tangents: Saved) -> Any:
    """Differentiate a function along those tangents of x, gate, weight and bias that are not zero.

    None if all are.
    """
    along = {name: _nonzero(getattr(tangents, name)) for name in ("x", "gate", "weight", "bias")}
    along = {name: each for name, each in along.items() if each is not None}
    if not along:
        return None

    def of_moving(*values: Any) -> Any:
        return function(saved._replace(**dict(zip(along, values, strict=True))))

    primals = [getattr(saved, name) for name in along]
    return jax.jvp(of_moving, primals, list(along.values()))[1]


def _tangent_jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    definition: Definition,
    given: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    with_total: bool,
) -> tuple[list[Any], list[Any]]:
    count = sum(given)
    saved, along = (
        saved_in(each[count:], definition, has_weight=has_weight, has_bias=has_bias)
        for each in (primals, tangents)
    )
    linear = spaced(primals[:count], given)
    results = tangent(linear, saved, definition, with_total=with_total)
    second = [_nonzero(each) for each in spaced(tangents[:count], given)]
    of_y, *of_total = _tangents(second, results, saved, definition)

    def function(saved: Saved) -> Any:
        return derivatives.forward_tangent(derivatives.rows_of(saved, definition), *linear)

    through = _through(function, saved, along)
    if through is not None:
        of_y = ad.add_tangents(of_y, through)
    return results, [of_y, *of_total]


def _tangent_transpose(
    cotangents: Sequence[Any],
    *operands: Any,
    definition: Definition,
    given: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    with_total: bool,
) -> list[Any]:
    dy, dtotal = cotangents if with_total else (*cotangents, None)
    dtotal = _nonzero(dtotal)
    count = sum(given)
    linear = [each.aval for each in operands[:count]]
    rest: list[Any] = [None] * (len(operands) - count)
    if _is_zero(dy):
        zeros = [ad.Zero(each) for each in linear]
        return [*(zeros if dtotal is None else [dtotal, *zeros[1:]]), *rest]
    saved = saved_in(operands[count:], definition, has_weight=has_weight, has_bias=has_bias)
    parameters = (*spaced(linear, given)[1:3], saved.weight, saved.bias, saved.x)
    gradients = backward(
        dy,
        saved,
        definition,
        dtotal=dtotal,
        need=given,
        parameter_type=next(each.dtype for each in parameters if each is not None),
    )
    return [*present(*gradients), *rest]


def _backward_jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    definition: Definition,
    has_dtotal: bool,
    need: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    parameter_type: Any,
) -> tuple[list[Any], list[Any]]:
    count = 1 + has_dtotal
    dy, dtotal = spaced(primals[:count], (True, has_dtotal))
    saved, along = (
        saved_in(each[count:], definition, has_weight=has_weight, has_bias=has_bias)
        for each in (primals, tangents)
    )

    def gradients(dy: Any, dtotal: Any) -> list[Any]:
        options: dict[str, Any] = {"need": need, "parameter_type": parameter_type}
        return present(*backward(dy, saved, definition, dtotal=dtotal, **options))

    results = gradients(dy, dtotal)
    terms: list[list[Any]] = []
    along_dy, along_dtotal = map(_nonzero, spaced(tangents[:count], (True, has_dtotal)))
    if along_dy is not None:
        terms.append(gradients(along_dy, along_dtotal))
    elif along_dtotal is not None:
        terms.append([along_dtotal, *map(_zero, results[1:])])

    def function(saved: Saved) -> Any:
        rows = derivatives.rows_of(saved, definition)
        every = derivatives.backward(rows, dy, parameter_type)
        return [each for each, needed in zip(every, need, strict=True) if needed]

    through = _through(function, saved, along)
    if through is not None:
        terms.append(through)
    sums = [_sum([term[at] for term in terms], result) for at, result in enumerate(results)]
    return results, sums


def _backward_transpose(
    cotangents: Sequence[Any],
    dy: Any,
    *operands: Any,
    definition: Definition,
    has_dtotal: bool,
    need: tuple[bool, ...],
    has_weight: bool,
    has_bias: bool,
    parameter_type: Any,
) -> list[Any]:
    of_dtotal = [cotangents[0]] if has_dtotal else []
    rest: list[Any] = [*of_dtotal, *[None] * (len(operands) - has_dtotal)]
    moving = [_nonzero(each) for each in spaced(cotangents, need)]
    if all(each is None for each in moving):
        return [ad.Zero(dy.aval), *rest]
    saved = saved_in(operands[has_dtotal:], definition, has_weight=has_weight, has_bias=has_bias)
    return [*tangent(moving, saved, definition), *rest]


ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_jvps[backward_p] = _backward_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_transposes[backward_p] = _backward_transpose
