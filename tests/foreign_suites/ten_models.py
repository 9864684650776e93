"""transformers' common tests of a model, for small models of ten architectures.

The source distribution holds the common tests, and not those of each model. This file is copied
beside them.
"""

import unittest

import transformers
from transformers.testing_utils import require_torch, torch_device

from .test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask

SMALL = {
    **{"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 37, "max_position_embeddings": 64, "pad_token_id": 0},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
SHARED_KEYS = {"num_key_value_heads": 2, "head_dim": 8}

# Prefix: the classes, and what their configuration has besides.
MODELS = {
    "Llama": (("Model", "ForCausalLM"), SHARED_KEYS),
    "Qwen3": (("Model", "ForCausalLM"), SHARED_KEYS),
    "Gemma2": (("Model", "ForCausalLM"), SHARED_KEYS),
    "Phi3": (("Model", "ForCausalLM"), {"num_key_value_heads": 2}),
    "Cohere": (("Model", "ForCausalLM"), {"num_key_value_heads": 2}),
    "GPT2": (("Model", "LMHeadModel"), {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "GPTNeoX": (("Model", "ForCausalLM"), {}),
    "OPT": (("Model", "ForCausalLM"), {"ffn_dim": 37, "word_embed_proj_dim": 32}),
    "Bert": (("Model", "ForMaskedLM"), {}),
    "T5": (("EncoderModel",), {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2}),
}


class SmallModel:
    """What ModelTesterMixin asks for a configuration and inputs."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads, vocab_size = 32, 2, 4, 99

    def __init__(self, parent, config_class, options) -> None:
        self.parent = parent
        self.config_class = config_class
        self.options = options

    def get_config(self):
        return self.config_class(**(SMALL | self.options))

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        input_ids = ids_tensor(shape, self.vocab_size - 3) + 3
        mask = random_attention_mask(shape)
        return self.get_config(), {
            "input_ids": input_ids.to(torch_device),
            "attention_mask": mask.to(torch_device),
        }


class CommonTests(ModelTesterMixin):
    prefix: str

    def setUp(self) -> None:
        config_class = getattr(transformers, f"{self.prefix}Config")
        self.model_tester = SmallModel(self, config_class, MODELS[self.prefix][1])


def made_for(prefix: str) -> type:
    classes = tuple(getattr(transformers, prefix + each) for each in MODELS[prefix][0])
    made = {"prefix": prefix, "all_model_classes": classes, "all_generative_model_classes": ()}
    name = f"{prefix}Test"
    return require_torch(
        type(name, (CommonTests, unittest.TestCase), made | {"__module__": __name__})
    )


for _prefix in MODELS:
    globals()[f"{_prefix}Test"] = made_for(_prefix)
