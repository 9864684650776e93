"""Half of all combinations of choices: with three or more that vary, each pair still comes up."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any


def half_of_all(*choices: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield every second combination, like the black squares of a chessboard."""
    for combination in itertools.product(*map(enumerate, choices)):
        if sum(index for index, _ in combination) % 2 == 0:
            yield tuple(choice for _, choice in combination)
