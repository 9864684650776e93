"""A pytest plugin that puts our norms in place before the tests are imported.

FOREIGN_SUITE is the project, and FOREIGN_NORMS says how:

    theirs       nothing is changed
    classes      torch.nn.LayerNorm and RMSNorm are ours
    accelerated  `layernorm.torch.accelerate()` for the whole session
    convert      `layernorm.torch.convert` after transformers or timm has made a model
"""

import functools
import os
import sys

import pytest
import stub_torchvision
import torch

import layernorm.torch as ours

SWAPPED: dict[str, int] = {}


def convert(model: torch.nn.Module) -> None:
    done = ours.convert(model)
    for kind in done.swapped.values():
        SWAPPED[kind] = SWAPPED.get(kind, 0) + 1


def convert_models_of_transformers() -> None:
    from transformers import PreTrainedModel

    post_init = PreTrainedModel.post_init

    @functools.wraps(post_init)
    def and_convert(self) -> None:
        post_init(self)
        convert(self)

    PreTrainedModel.post_init = and_convert


def convert_models_of_timm() -> None:
    import timm

    create_model = timm.create_model

    @functools.wraps(create_model)
    def and_convert(*arguments, **options):
        model = create_model(*arguments, **options)
        convert(model)
        return model

    for module in (timm, timm.models, sys.modules["timm.models._factory"]):
        module.create_model = and_convert


CONVERT = {"transformers": convert_models_of_transformers, "timm": convert_models_of_timm}


def put_in_place(way: str, project: str) -> None:
    if way == "classes":
        torch.nn.LayerNorm, torch.nn.RMSNorm = ours.LayerNorm, ours.RMSNorm
        torch.nn.modules.normalization.LayerNorm = ours.LayerNorm
        torch.nn.modules.normalization.RMSNorm = ours.RMSNorm
    elif way == "accelerated":
        ours.accelerate()
    elif way == "convert":
        CONVERT[project]()
    elif way != "theirs":
        raise pytest.UsageError(f"FOREIGN_NORMS is {way}")


def pytest_terminal_summary(terminalreporter) -> None:
    for kind, count in sorted(SWAPPED.items()):
        terminalreporter.write_line(f"converted {count} {kind}")


if os.environ["FOREIGN_SUITE"] == "timm":
    stub_torchvision.install()
put_in_place(os.environ["FOREIGN_NORMS"], os.environ["FOREIGN_SUITE"])
