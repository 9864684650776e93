"""What a quick bench is made of in the tests."""

from layernorm.cli import cells

CELLS = [
    cells.Cell("forward", (3, 17)),
    cells.Cell("forward", (3, 17), output="reused"),
    cells.Cell("forward", (3, 17), cache="cold"),
    cells.Cell("forward", (2, 5, 3, 3), axis=1),
    cells.Cell("backward", (3, 17)),
]
