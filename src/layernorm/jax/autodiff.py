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
    backward,
    backward_p,
    forward,
    forward_p,
    parts,
    present,
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
    given = (True, has_addend, has_weight, has_bias)
    x, addend, weight, bias = spaced(primals, given)
    results = forward(x, weight, bias, definition, addend, with_statistics=True)
    outputs, statistics = results[: 1 + has_addend], results[1 + has_addend :]
    of_x, of_addend, *of_parameters = spaced(tangents, given)
    if has_addend:
        x, of_x = outputs[1], ad.add_tangents(of_x, of_addend)
    moving = [_nonzero(each) for each in (of_x, *of_parameters)]
    found = _tangents(moving, outputs, x, statistics, weight, definition)
    kept = statistics if with_statistics else []
    return [*outputs, *kept], [*found, *map(_zero, kept)]


def _tangents(
    linear: Sequence[Any],
    outputs: Sequence[Any],
    x: Any,
    statistics: Sequence[Any],
    weight: Any,
    definition: Definition,
) -> list[Any]:
    """Return the tangents of the outputs, y or y and total, from those that are not None."""
    found = []
    if any(each is not None for each in linear):
        with_total = len(outputs) == 2 and linear[0] is not None
        found = tangent(linear, x, statistics, weight, definition, with_total=with_total)
    return [*found, *map(_zero, outputs[len(found) :])]


def _through(
    function: Callable[..., Any], x: Any, weight: Any, x_tangent: Any, weight_tangent: Any
) -> Any:
    """Differentiate a function of x and weight along the tangents that are not None."""
    moving = [(each, along) for each, along in ((x, x_tangent), (weight, weight_tangent))]
    primals = [each for each, along in moving if along is not None]

    def of_moving(*values: Any) -> Any:
        following = iter(values)
        return function(*(next(following) if a is not None else each for each, a in moving))

    return jax.jvp(of_moving, primals, [along for _, along in moving if along is not None])[1]


def _tangent_jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    definition: Definition,
    given: tuple[bool, ...],
    has_weight: bool,
    with_total: bool,
) -> tuple[list[Any], list[Any]]:
    count = sum(given)
    x, statistics, weight = parts(primals[count:], definition, has_weight)
    linear = spaced(primals[:count], given)
    results = tangent(linear, x, statistics, weight, definition, with_total=with_total)
    second = [_nonzero(each) for each in spaced(tangents[:count], given)]
    of_y, *of_total = _tangents(second, results, x, statistics, weight, definition)
    along_x, _, along_weight = parts(tangents[count:], definition, has_weight)
    along_x, along_weight = _nonzero(along_x), _nonzero(along_weight)
    if along_x is not None or along_weight is not None:

        def function(x: Any, weight: Any) -> Any:
            return derivatives.forward_tangent(derivatives.rows_of(x, weight, definition), *linear)

        of_y = ad.add_tangents(of_y, _through(function, x, weight, along_x, along_weight))
    return results, [of_y, *of_total]


def _tangent_transpose(
    cotangents: Sequence[Any],
    *operands: Any,
    definition: Definition,
    given: tuple[bool, ...],
    has_weight: bool,
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
    x, statistics, weight = parts(operands[count:], definition, has_weight)
    types = [each.dtype for each in spaced(linear, given)[1:] if each is not None]
    gradients = backward(
        dy,
        x,
        statistics,
        weight,
        definition,
        dtotal=dtotal,
        need=given,
        parameter_type=types[0] if types else x.dtype if weight is None else weight.dtype,
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
    parameter_type: Any,
) -> tuple[list[Any], list[Any]]:
    count = 1 + has_dtotal
    dy, dtotal = spaced(primals[:count], (True, has_dtotal))
    x, statistics, weight = parts(primals[count:], definition, has_weight)

    def gradients(dy: Any, dtotal: Any) -> list[Any]:
        options: dict[str, Any] = {"need": need, "parameter_type": parameter_type}
        return present(*backward(dy, x, statistics, weight, definition, dtotal=dtotal, **options))

    results = gradients(dy, dtotal)
    terms: list[list[Any]] = []
    along_dy, along_dtotal = map(_nonzero, spaced(tangents[:count], (True, has_dtotal)))
    if along_dy is not None:
        terms.append(gradients(along_dy, along_dtotal))
    elif along_dtotal is not None:
        terms.append([along_dtotal, *map(_zero, results[1:])])
    along_x, _, along_weight = parts(tangents[count:], definition, has_weight)
    along_x, along_weight = _nonzero(along_x), _nonzero(along_weight)
    if along_x is not None or along_weight is not None:

        def function(x: Any, weight: Any) -> Any:
            rows = derivatives.rows_of(x, weight, definition)
            every = derivatives.backward(rows, dy, parameter_type)
            return [each for each, needed in zip(every, need, strict=True) if needed]

        terms.append(_through(function, x, weight, along_x, along_weight))
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
    parameter_type: Any,
) -> list[Any]:
    of_dtotal = [cotangents[0]] if has_dtotal else []
    rest: list[Any] = [*of_dtotal, *[None] * (len(operands) - has_dtotal)]
    moving = [_nonzero(each) for each in spaced(cotangents, need)]
    if all(each is None for each in moving):
        return [ad.Zero(dy.aval), *rest]
    x, statistics, weight = parts(operands[has_dtotal:], definition, has_weight)
    return [*tangent(moving, x, statistics, weight, definition), *rest]


ad.primitive_jvps[forward_p] = _forward_jvp
ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_jvps[backward_p] = _backward_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_transposes[backward_p] = _backward_transpose
