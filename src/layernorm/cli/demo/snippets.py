"""The demo's snippets: a few lines each, run line by line as an interactive session shows them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Snippet:
    """Source text, and what it needs besides NumPy, by the names of `networks.FRAMEWORKS`."""

    title: str
    source: str
    framework: str | None = None


SNIPPETS = (
    Snippet(
        "NumPy: a layer trained by its own backward",
        """\
import numpy as np
from layernorm.numpy import SGD, LayerNorm
rng = np.random.default_rng(0)
x = rng.normal(5, 3, (64, 16)).astype(np.float32)
target = 2 * (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) + 1
norm = LayerNorm(16)
optimizer = SGD(norm.parameters(), lr=0.1)
for step in range(100):
    dy = (norm(x) - target) / len(x)    # of half the mean squared distance
    optimizer.zero_grad()
    dx = norm.backward(dy)
    optimizer.step()
norm.weight.data[:6].round(2)    # 2 is what it should learn
norm.bias.data[:6].round(2)    # and 1
""",
    ),
    Snippet(
        "PyTorch: a drop-in function, and a model converted",
        """\
import torch, layernorm.torch
x = torch.tensor([[9999.0, 10000.0, 10001.0]])
layernorm.torch.layer_norm(x, (3,))    # the arguments of torch.nn.functional.layer_norm
model = torch.nn.TransformerEncoderLayer(64, nhead=4)
layernorm.torch.convert(model)    # in place: the same parameters, our kernels
model.norm1
""",
        "torch",
    ),
    Snippet(
        "PyTorch: the norms of transformer blocks in one call each",
        """\
import torch, layernorm.torch
branch, stream = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
norm = layernorm.torch.LayerNorm(64)
y, total = norm(branch, stream)    # a pre-norm block: the stream goes on as total
torch.equal(total, branch + stream), torch.equal(y, norm(total))
scale, shift = torch.randn(2, 1, 64), torch.randn(2, 1, 64)    # of each sample, as in DiT
modulated = layernorm.torch.layer_norm(total, (64,), scale, shift, zero_centered_weight=True)
torch.allclose(modulated, y * (1 + scale) + shift, atol=1e-5)
gate = torch.randn(2, 3, 64)    # of the scan's result, as in Mamba2
gated = layernorm.torch.RMSNorm(64)(total, gate=gate, norm_before_gate=False)
gated.shape
""",
        "torch",
    ),
    Snippet(
        "Keras: a layer in a functional model",
        """\
import keras, numpy as np
from layernorm.keras import LayerNormalization
inputs = keras.Input((16,))
hidden = LayerNormalization()(keras.layers.Dense(32)(inputs))
model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
model.compile(keras.optimizers.Adam(0.01), "mse")
features = np.random.default_rng(0).normal(size=(256, 16))
fitted = model.fit(features, features.sum(1), epochs=5, verbose=0)
[round(each, 2) for each in fitted.history["loss"]]
""",
        "keras",
    ),
)


def session(source: str, names: dict[str, Any]) -> Iterator[str]:
    """Run the source; yield each statement with its prompts, and the value of each expression.

    Args:
        source: Python, without blank lines.
        names: the variables, which the source adds to.
    """
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        block = lines[statement.lineno - 1 : statement.end_lineno]
        yield "\n".join(f"{'...' if place else '>>>'} {line}" for place, line in enumerate(block))
        if isinstance(statement, ast.Expr):
            value = eval(ast.unparse(statement), names)
            if value is not None:
                yield repr(value)
        else:
            exec(ast.unparse(statement), names)
