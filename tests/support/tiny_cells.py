"""The cells of a quick bench in the tests."""

from layernorm.cli.bench.cells import Cell

CELLS = [
    Cell("forward", (3, 17)),
    Cell("forward", (3, 17), output="reused"),
    Cell("forward", (3, 17), cache="cold"),
    Cell("forward", (2, 5, 3, 3), axis=1),
    Cell("backward", (3, 17)),
    Cell("forward", (3, 17), kind="rms_norm"),
    Cell("backward", (2, 5, 3, 3), axis=1, kind="rms_norm"),
]
