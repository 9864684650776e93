"""Models of PyTorch for the tests of `inspect`."""

import foreign_norms as foreign
import torch
import torch.nn.functional as F
from torch import nn

import layernorm.torch as ours

COLS = 24


class Block(nn.Module):
    """Calls norms of every kind, one of them twice and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.never_norm = nn.LayerNorm(3)
        self.first = nn.LayerNorm(COLS, eps=1e-3)
        self.llama_norm = foreign.LlamaNorm(COLS)
        self.own = ours.RMSNorm(COLS, zero_centered_weight=True)
        self.batch_norm = nn.BatchNorm1d(COLS)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = self.own(F.layer_norm(x, (COLS,)))
        y = self.first(self.first(self.llama_norm(self.drop(y))))
        return {"y": self.batch_norm(F.rms_norm(y, (COLS,))), "count": 3}


def make(kind=Block):
    torch.manual_seed(3)
    model = kind()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each), alpha=0.1)
    return model


def rows(*shape, mean=0.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4)) + mean


def by_name(report):
    return {each.name: each for each in report.norms}


class Around(nn.Module):
    """Calls a function of itself, with a norm and a linear layer."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(COLS), nn.Linear(COLS, COLS)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs, **keywords):
        return self.function(self, *inputs, **keywords)
