"""The text: Python's help topics, which come with Python, one character a token."""

from pydoc_data.topics import topics

import torch
from torch import Tensor

CONTEXT, BATCH = 64, 16
TEST_PART = 0.1


class Text:
    """Characters as numbers, in a part to train on and one to test on."""

    def __init__(self) -> None:
        text = "".join(topics[name] for name in sorted(topics))
        self.characters = sorted(set(text))
        numbers = {character: n for n, character in enumerate(self.characters)}
        every = torch.tensor([numbers[character] for character in text])
        count = int(len(every) * (1 - TEST_PART))
        self.train, self.test = every[:count], every[count:]

    def batch(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return random passages (batch, context), and the characters that follow each place."""
        return _passages(self.train, BATCH, seed)

    def test_batch(self) -> tuple[Tensor, Tensor]:
        """Return the passages on which a trained model is judged."""
        return _passages(self.test, 4 * BATCH, 0)


def _passages(numbers: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(numbers) - CONTEXT, (count, 1), generator=generator)
    at = starts + torch.arange(CONTEXT)
    return numbers[at], numbers[at + 1]
