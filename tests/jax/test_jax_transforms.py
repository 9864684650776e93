"""The common uses of a function in JAX: jit, scan, remat, donation, ahead-of-time compilation."""

import functools
import sys
import threading

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from calls import assert_same_bits  # noqa: E402
from jax import export  # noqa: E402
from own_process import run  # noqa: E402
from problems import a_problem  # noqa: E402

import layernorm  # noqa: E402
import layernorm.jax as ours  # noqa: E402
import layernorm.numpy as numpy_front_end  # noqa: E402


def problem(shape=(6, 33)):
    return [each.astype(np.float32) for each in a_problem(shape)]


def expected(x, weight, bias, dy):
    y, stats = numpy_front_end.layer_norm_forward(x, weight, bias)
    return (y, *numpy_front_end.layer_norm_backward(dy, x, stats, weight))


def assert_bits(got, arrays) -> None:
    for name, a, b in zip(("y", "dx", "dweight", "dbias"), got, arrays, strict=False):
        assert_same_bits(np.asarray(a), b, name)


def gradients(function, x, weight, bias, dy):
    y, transposed = jax.vjp(function, x, weight, bias)
    return (y, *transposed(dy))


WAYS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "jit of remat": lambda f: jax.jit(jax.checkpoint(f)),
    "remat that keeps nothing": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable
    ),
    "linearize": lambda f: lambda *a: jax.linearize(f, *a)[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_bits(way) -> None:
    arrays = problem()
    if way == "linearize":
        assert_bits([WAYS[way](ours.layer_norm)(*arrays[:3])], expected(*arrays))
    else:
        assert_bits(gradients(WAYS[way](ours.layer_norm), *arrays), expected(*arrays))


def test_without_jit() -> None:
    arrays = problem()
    with jax.disable_jit():
        assert_bits(gradients(ours.layer_norm, *arrays), expected(*arrays))


def test_scan_over_layers() -> None:
    x, weight, bias, dy = problem()
    weights = np.stack([weight, weight + 1, weight - 1])

    def run(x, weights):
        def step(x, weight):
            return ours.layer_norm(x, weight, bias), None

        return jax.lax.scan(step, x, weights)[0]

    y, transposed = jax.vjp(jax.jit(run), x, weights)
    dx, dweights = transposed(dy)
    inputs, stats = [x], []
    for each in weights:
        following, kept = numpy_front_end.layer_norm_forward(inputs[-1], each, bias)
        inputs.append(following)
        stats.append(kept)
    assert_same_bits(np.asarray(y), inputs[-1], "y")
    for at in reversed(range(3)):
        dy, dweight, _ = numpy_front_end.layer_norm_backward(dy, inputs[at], stats[at], weights[at])
        assert_same_bits(np.asarray(dweights[at]), dweight, "dweight")
    assert_same_bits(np.asarray(dx), dy, "dx")


def test_compiled_ahead_of_time_and_with_a_donated_x() -> None:
    x, weight, bias, dy = problem()
    function = jax.jit(ours.layer_norm, donate_argnums=0)
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in (x, weight, bias)]
    compiled = function.lower(*shapes).compile()
    given = jnp.asarray(x)
    y = compiled(given, weight, bias)
    assert given.is_deleted()
    assert_bits([y], expected(x, weight, bias, dy))


CHECKS = [
    export.DisabledSafetyCheck.custom_call(name)
    for name in ("layernorm_forward", "layernorm_backward")
]


def every_gradient(x, weight, bias, dy):
    return gradients(ours.layer_norm, x, weight, bias, dy)


def test_a_program_can_be_exported_and_called() -> None:
    arrays = problem()
    right = expected(*arrays)
    exported = export.export(jax.jit(ours.layer_norm), disabled_checks=CHECKS[:1])(*arrays[:3])
    again = export.deserialize(exported.serialize())
    assert_bits([again.call(*arrays[:3])], right)
    exported = export.export(jax.jit(every_gradient), disabled_checks=CHECKS)(*arrays)
    assert_bits(export.deserialize(exported.serialize()).call(*arrays), right)


def test_an_exported_program_can_be_differentiated() -> None:
    arrays = problem()
    exported = export.export(jax.jit(ours.layer_norm), disabled_checks=CHECKS)(*arrays[:3])
    again = export.deserialize(exported.serialize(vjp_order=1))
    assert_bits(gradients(again.call, *arrays), expected(*arrays))


def test_an_exported_program_takes_any_number_of_rows() -> None:
    arrays = problem()
    (rows,) = export.symbolic_shape("rows")
    shapes = [
        jax.ShapeDtypeStruct((rows, 33), "float32") if each.ndim == 2 else each for each in arrays
    ]
    exported = export.export(jax.jit(every_gradient), disabled_checks=CHECKS)(*shapes)
    assert_bits(export.deserialize(exported.serialize()).call(*arrays), expected(*arrays))


def test_without_the_checks_named_the_export_says_which() -> None:
    arrays = problem()
    with pytest.raises(ValueError, match="layernorm_forward"):
        export.export(jax.jit(every_gradient))(*arrays)
    with pytest.raises(ValueError, match="layernorm_backward"):
        export.export(jax.jit(every_gradient), disabled_checks=CHECKS[:1])(*arrays)
    elsewhere = export.export(jax.jit(every_gradient), platforms=["cuda", "tpu"])(*arrays)
    assert elsewhere.platforms == ("cuda", "tpu")


def test_an_exported_program_needs_our_import_where_it_runs(tmp_path) -> None:
    x, weight, bias, dy = problem()
    exported = export.export(jax.jit(ours.layer_norm), disabled_checks=CHECKS)(x, weight, bias)
    (tmp_path / "program").write_bytes(exported.serialize())
    np.savez(tmp_path / "arrays.npz", x=x, weight=weight, bias=bias)
    code = f"""
import sys, numpy as np
from jax import export
if sys.argv[1:]: import layernorm.jax
program = export.deserialize(bytearray(open({str(tmp_path / "program")!r}, "rb").read()))
arrays = np.load({str(tmp_path / "arrays.npz")!r})
np.save({str(tmp_path / "y.npy")!r}, program.call(arrays["x"], arrays["weight"], arrays["bias"]))
"""
    run([sys.executable, "-c", code, "with our import"])
    assert_bits([np.load(tmp_path / "y.npy")], expected(x, weight, bias, dy))
    with pytest.raises(AssertionError, match="No FFI handler registered for layernorm_forward"):
        run([sys.executable, "-c", code])


def test_a_traced_eps_is_told() -> None:
    x, *_ = problem()
    with pytest.raises(TypeError, match=r"eps is traced.*static_argnames"):
        jax.jit(lambda eps: ours.layer_norm(x, eps=eps))(1e-5)


def test_other_platforms_get_the_formulas() -> None:
    x, weight, bias, _ = problem()
    for platform in ("cuda", "tpu"):
        traced = jax.jit(ours.layer_norm).trace(x, weight, bias)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "layernorm_forward" not in text
        assert "stablehlo.reduce" in text


def test_a_loop_with_a_traced_length() -> None:
    x, weight, bias, _ = problem()

    @jax.jit
    def repeat(x, times):
        return jax.lax.fori_loop(0, times, lambda _, x: ours.layer_norm(x, weight, bias), x)

    y = numpy_front_end.layer_norm(numpy_front_end.layer_norm(x, weight, bias), weight, bias)
    assert_same_bits(np.asarray(repeat(x, 2)), y, "y")


def test_several_threads_at_once_give_no_wrong_bits() -> None:
    arrays = problem((2000, 129))
    right, function = expected(*arrays), jax.jit(functools.partial(gradients, ours.layer_norm))
    function(*arrays)
    failures = []

    def work() -> None:
        try:
            for _ in range(10):
                assert_bits(function(*arrays), right)
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=60)
        assert not each.is_alive(), "a call never came back"
    assert failures == []


def test_calls_within_one_program_share_xlas_threads() -> None:
    """Independent calls, each large enough for several threads, run on XLA's threads at once."""
    arrays = problem((2000, 129))
    x, weight, bias, _ = arrays

    @jax.jit
    def many(x):
        return [ours.layer_norm(x * (2.0**at), weight, bias) for at in range(16)]

    for at, y in enumerate(many(x)):
        right = numpy_front_end.layer_norm(x * np.float32(2.0**at), weight, bias)
        assert_same_bits(np.asarray(y), right, f"y of call {at}")


# ---- arguments


def test_the_top_level_takes_arrays_and_what_is_traced() -> None:
    x, weight, bias, dy = problem()
    given = [jnp.asarray(each) for each in (x, weight, bias)]
    assert_bits([layernorm.layer_norm(*given)], expected(x, weight, bias, dy))
    assert_bits([jax.jit(layernorm.layer_norm)(*given)], expected(x, weight, bias, dy))
    y = numpy_front_end.rms_norm(x, weight, zero_centered_weight=True)
    got = layernorm.rms_norm(*given[:2], zero_centered_weight=True)
    assert_same_bits(np.asarray(got), y, "y")
    with pytest.raises(TypeError, match=r"out is of type .*layernorm\.jax cannot be written to"):
        layernorm.layer_norm(*given, out=given[0])


def test_without_elements() -> None:
    for shape in ((0, 3), (2, 0)):
        x, weight = jnp.zeros(shape), jnp.ones(shape[1])
        y, transposed = jax.vjp(ours.layer_norm, x, weight)
        dx, dweight = transposed(y)
        assert y.shape == dx.shape == shape
        assert (dweight == 0).all()


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((np.ones((2, 3), int),), {}, "TypeError: x has type int.*jnp.asarray.x, jnp.float32"),
        ((np.ones((2, 3), complex),), {}, "TypeError: x has type complex"),
        ((np.ones((2, 3), "f"), np.ones(2, "f")), {}, "ValueError: weight has shape .2,."),
        ((np.ones((2, 3), "f"), np.ones(3, "e")), {}, "TypeError: weight has type float16"),
        ((np.ones((2, 3), "f"),), {"axis": 2}, "ValueError: axis 2 is out of range"),
        ((np.ones((2, 3), "f"),), {"axis": 0.5}, "TypeError: axis is 0.5"),
        ((np.ones((2, 3), "f"),), {"eps": -1}, "ValueError: eps is -1"),
        ((np.float32(1),), {}, "ValueError: x has no axes"),
        (("text",), {}, "TypeError: x is of type str.*pass an array of numbers"),
        ((None,), {}, "ValueError: x is of type NoneType.*pass an array of numbers"),
        (([[1.0], [1.0, 2.0]],), {}, "ValueError: x is of type list.*lists of floats of one"),
        (([[1, 2]],), {}, "TypeError: x has type int.*jnp.asarray.x, jnp.float32"),
        ((np.ones(3, "f"), [1, 1, 1]), {}, "TypeError: weight has type int.*jnp.asarray.weight"),
        ((np.ones(3, "f"), [[1.0, 1, 1]]), {}, "ValueError: .*jnp.asarray.weight..reshape..3,.."),
        ((np.ma.masked_array([1.0, 2.0]),), {}, "ValueError: x is of type MaskedArray.*filled"),
        ((np.ones(3, "f"), None, {}), {}, "TypeError: bias is of type dict.*array of numbers"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_mistakes_are_told_when_the_call_is_traced(arguments, options, error) -> None:
    kind, text = error.split(": ", 1)
    with pytest.raises({"TypeError": TypeError, "ValueError": ValueError}[kind], match=text):
        ours.layer_norm(*arguments, **options)
    if all(isinstance(each, np.ndarray | np.generic) for each in arguments) and not isinstance(
        arguments[0], np.ma.MaskedArray
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            jax.jit(functools.partial(ours.layer_norm, **options)).lower(*arguments)


@pytest.mark.parametrize("axis", [True, 1.0])
def test_a_checked_call_does_not_admit_another_type_that_equals_its_axis(axis) -> None:
    """The checks of a call are cached, and to a cache True and 1.0 are the axis 1."""
    x = np.ones((2, 3), "f")
    ours.layer_norm(x, axis=1)
    with pytest.raises(TypeError, match="axis is"):
        ours.layer_norm(x, axis=axis)
