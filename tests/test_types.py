"""What a type checker knows of the results: `make lint` runs mypy on this file."""

from typing import Any, assert_type

import numpy as np

import layernorm

Float32 = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def test_y_and_total_have_the_type_of_x() -> None:
    x: Float32 = np.ones((2, 3), np.float32)
    results = [
        assert_type(layernorm.layer_norm(x), Float32),
        assert_type(layernorm.rms_norm(x), Float32),
        *assert_type(layernorm.layer_norm(x, residual=x), tuple[Float32, Float32]),
        *assert_type(layernorm.rms_norm(x, residual=x), tuple[Float32, Float32]),
    ]
    assert [type(result) for result in results] == [np.ndarray] * 6
    assert [(result.dtype.name, result.ndim) for result in results] == [("float32", 2)] * 6


def test_results_with_another_type_than_x_are_any() -> None:
    x: Float32 = np.ones((2, 3), np.float32)
    results = [
        assert_type(layernorm.layer_norm([1.0, 2.0]), Any),
        assert_type(layernorm.rms_norm((1.0, 2.0)), Any),
        assert_type(layernorm.quantized_layer_norm(x, scale=1), Any),
        assert_type(layernorm.quantized_rms_norm(x, scale=1), Any),
        *assert_type(layernorm.quantized_layer_norm(x), Any),
        *assert_type(layernorm.quantized_rms_norm([1.0, 2.0]), Any),
    ]
    assert [type(result) for result in results] == [np.ndarray] * 8
    assert [result.dtype.name for result in results] == [
        *("float64", "float64", "int8", "int8", "int8", "float32", "int8", "float64")
    ]


class Tensor:
    """A framework's array: mypy sees the real ones as Any (pyproject.toml)."""

    def __getitem__(self, key: object) -> "Tensor":
        raise NotImplementedError


def types_of_a_tensors_results(x: Tensor, maybe: Tensor | None, scale: float | None) -> None:
    """Never called."""
    assert_type(layernorm.layer_norm(x), Tensor)
    assert_type(layernorm.rms_norm(x), Tensor)
    assert_type(layernorm.layer_norm(x, residual=x), tuple[Tensor, Tensor])
    assert_type(layernorm.rms_norm(x, residual=x), tuple[Tensor, Tensor])
    assert_type(layernorm.layer_norm(x, residual=maybe), Tensor | tuple[Tensor, Tensor])
    assert_type(layernorm.rms_norm(x, residual=maybe), Tensor | tuple[Tensor, Tensor])
    assert_type(layernorm.quantized_layer_norm(x), tuple[Tensor, Tensor])
    assert_type(layernorm.quantized_rms_norm(x), tuple[Tensor, Tensor])
    assert_type(layernorm.quantized_layer_norm(x, scale=0.1), Tensor)
    assert_type(layernorm.quantized_rms_norm(x, scale=x), Tensor)
    assert_type(layernorm.quantized_layer_norm(x, scale=scale), Tensor | tuple[Tensor, Tensor])
    assert_type(layernorm.quantized_rms_norm(x, scale=scale), Tensor | tuple[Tensor, Tensor])


def types_of_an_unknown_arrays_results(x: Any) -> None:
    """Never called."""
    assert_type(layernorm.layer_norm(x), Any)
    assert_type(layernorm.rms_norm(x, residual=x), Any)
    assert_type(layernorm.quantized_layer_norm(x), Any)
    assert_type(layernorm.quantized_rms_norm(x, scale=x), Any)


def mistakes_that_are_found(maybe: Tensor | None) -> None:
    """Never called. Under `strict`, mypy reports an ignored error that is none."""
    layernorm.layer_norm(None)  # type: ignore[call-overload]
    layernorm.rms_norm(1.0)  # type: ignore[call-overload]
    layernorm.layer_norm(maybe)  # type: ignore[type-var]
    layernorm.layer_norm([1.0], axes=0)  # type: ignore[call-overload]
    layernorm.rms_norm([1.0], eps="1")  # type: ignore[call-overload]
    layernorm.quantized_layer_norm(maybe)  # type: ignore[type-var]
