"""How the model is spread over processes.

Attention has some of the heads on each, and the perceptron some of the inner channels. Between them
the stream (batch, time, hidden) is sharded: along time in the first half of the blocks, as is usual
(sequence parallelism), along the hidden axis in the others. There each process has a part of every
row that is normalized, and `layernorm.torch` gathers 8 bytes of each part in place of the part.
"""

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from parallel_transformer.model import BLOCKS, Transformer

TIME, HIDDEN = Shard(1), Shard(2)


def of_block(stream: Shard) -> dict[str, ParallelStyle]:
    """Plan a block whose stream is sharded so."""
    # Summed over the processes, which have other heads or channels, and sharded.
    row_wise = RowwiseParallel(output_layouts=stream, use_local_output=False)
    norm = SequenceParallel(sequence_dim=stream.dim)
    gather = PrepareModuleInput(
        input_layouts=stream, desired_input_layouts=Replicate(), use_local_output=False
    )
    return {
        "norm1": norm,
        "attention": gather,
        "attention.q": ColwiseParallel(),
        "attention.k": ColwiseParallel(),
        "attention.v": ColwiseParallel(),
        "attention.o": row_wise,
        "norm2": norm,
        "perceptron": gather,
        "perceptron.gate": ColwiseParallel(),
        "perceptron.up": ColwiseParallel(),
        "perceptron.down": row_wise,
    }


def parallelize(model: Transformer, mesh: DeviceMesh) -> None:
    """Shard the model's parameters over the processes of the mesh, in place."""
    parallelize_module(
        model,
        mesh,
        {
            "embedding": RowwiseParallel(
                input_layouts=Replicate(), output_layouts=TIME, use_local_output=False
            ),
            f"blocks.{BLOCKS // 2}": PrepareModuleInput(
                input_layouts=TIME, desired_input_layouts=HIDDEN, use_local_output=False
            ),
            "norm": SequenceParallel(sequence_dim=HIDDEN.dim),
            "head": ColwiseParallel(input_layouts=HIDDEN, output_layouts=Replicate()),
        },
    )
    for n, block in enumerate(model.blocks):
        parallelize_module(block, mesh, of_block(TIME if n < BLOCKS // 2 else HIDDEN))
