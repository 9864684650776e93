"""What `check` and `bench` ask of an implementation of layer norm and RMS norm."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import numpy as np

from layernorm.cli.problem import Array, Problem

Call: TypeAlias = Callable[[], Any]


class Unsupported(Exception):
    """This provider cannot do this problem. The message says why."""


class Provider(ABC):
    """One implementation. Its calls do the work alone: arrays are converted before."""

    name: ClassVar[str]
    distribution: ClassVar[str]
    types: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "float64")

    def __init__(self, threads: int) -> None:
        """Load the library and set its number of threads.

        Raises: ImportError if it is not installed, Unsupported if it does not work here.
        """
        self.threads = threads

    @abstractmethod
    def forward(self, problem: Problem, *, reuse_output: bool = False) -> Call:
        """Return the call that computes y: a new array, or the same one each time."""

    def backward(self, problem: Problem) -> Call:
        """Return the call that computes dx, dweight and, for layer norm, dbias.

        The forward is done before.
        """
        raise Unsupported(f"{self.name} has no backward")

    def arrays(self, result: Any) -> tuple[Array, ...]:
        """Turn what a call returned into NumPy arrays: (y,), or dx and those of the parameters."""
        return tuple(np.asarray(each) for each in _as_tuple(result))

    def require(self, problem: Problem, *, reuse_output: bool = False, can_reuse: bool) -> None:
        """Raise Unsupported for a type, or for a given output, that the library does not take."""
        if problem.type_name not in self.types:
            raise Unsupported(f"{self.name} does not take {problem.type_name} here")
        if reuse_output and not can_reuse:
            raise Unsupported(f"{self.name} cannot write into a given array")


def first_line(error: Exception) -> str:
    """Describe an error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)
