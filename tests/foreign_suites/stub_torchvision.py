"""Makes `import torchvision` work where it is not installed, as far as timm's modules need it.

Every name is an empty class. What torchvision computes is not there: tests that need it fail, with
any norm.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import torch

ABSENT = "torchvision.models.feature_extraction"  # timm looks whether it can be imported


class _Meta(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(ModuleType):
    __version__ = "0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Meta(name, (torch.nn.Module,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "torchvision" or name == ABSENT:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install() -> None:
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Finder())
