"""Compares the results of a provider of the command line with those of `layernorm.numpy`."""

import itertools
from typing import get_args

import numpy as np

from layernorm.accuracy import Kind
from layernorm.cli.machine import usable_processors
from layernorm.cli.problem import make_problem
from layernorm.cli.providers import Provider, Unsupported, ours

ROWS, CHANNELS_FIRST = ((6, 33), -1), ((2, 33, 3, 5), 1)


def assert_results_are_numpys(provider: Provider, layouts=(ROWS, CHANNELS_FIRST)) -> None:
    """Check y of both norms, and the gradients if the provider has them.

    Rows in every type; channels first in one, because the arguments do not depend on the type.
    """
    done = 0
    for (shape, axis), kind in itertools.product(layouts, get_args(Kind)):
        for type_name in provider.types if (shape, axis) == ROWS else provider.types[:1]:
            problem = make_problem(shape, type_name, axis=axis, eps=0.5, kind=kind)
            mine = ours.Ours(usable_processors())
            tolerance = 0.05 if problem.x.itemsize == 2 else 1e-4
            for direction in ("forward", "backward"):
                try:
                    results = provider.arrays(getattr(provider, direction)(problem)())
                except Unsupported:
                    continue
                expected = mine.arrays(getattr(mine, direction)(problem)())
                for array, want in zip(results, expected, strict=True):
                    assert array.dtype == want.dtype
                    np.testing.assert_allclose(
                        array.astype(float), want.astype(float), rtol=tolerance, atol=tolerance
                    )
                done += 1
    assert done >= 2 * len(provider.types)
