"""Run by test_keras.py: what test_architecture.py asks of each front end."""

import inspect

import pytest
import test_architecture as rules

import layernorm.keras
import layernorm.tensorflow

PUBLIC = {
    layernorm.tensorflow: {"layer_norm", "rms_norm"},
    layernorm.keras: {
        *("layer_norm", "rms_norm", "LayerNormalization", "RMSNormalization", "convert"),
    },
}

each_module = pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)


@each_module
def test_public_names_are_those_of_the_init(module, monkeypatch) -> None:
    monkeypatch.setattr(rules, "PUBLIC", PUBLIC)
    rules.test_public_names_are_those_of_the_init(module)


@each_module
def test_everything_public_documents_itself(module) -> None:
    rules.test_every_public_class_and_method_documents_itself(module)
    for name in module.__all__:
        if inspect.isfunction(getattr(module, name)):
            assert rules.missing_parts(getattr(module, name)) == []
