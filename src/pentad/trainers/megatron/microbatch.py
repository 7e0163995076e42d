"""One microbatch on its device, ready for the model.

Invariant: what is padded for the layout's sake carries no loss and changes no log-prob.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pentad.platform.device import to_device
from pentad.samples.batch import Batch
from pentad.trainers.megatron.attention import needs_padding
from pentad.trainers.megatron.packing import PackedInputs
from pentad.trainers.megatron.rotary import RotaryTable


@dataclass
class Microbatch:
    """A pack and where its log-probs belong.

    Attributes:
        batch: the sequences, on the device, without padding.
        tokens: int64 `[1, t / context]`, this context-parallel rank's run of the pack, which is padded to a multiple
            of the ranks that split it.
        start: the place of the run's first token in the pack.
        packed: bounds and rotary tables of the whole pack, of length t.
        targets: int64 `[n]`, token indices in `batch` whose log-probs are wanted; each is predicted from the token
            before it.
        sample_ids: host copy of the sequences' ids.
    """

    batch: Batch
    tokens: Tensor
    start: int
    packed: PackedInputs
    targets: Tensor
    sample_ids: list[int]


def make_microbatch(
    batch: Batch,
    indices: tuple[int, ...],
    *,
    tensor_ranks: int,
    context: tuple[int, int],
    rotary: RotaryTable,
    device: torch.device,
    dtype: torch.dtype,
) -> Microbatch:
    """Pack some sequences of a batch.

    Args:
        indices: which sequences, in order.
        tensor_ranks: tensor-parallel ranks, which split the tokens between layers.
        context: this rank's place in its context-parallel group, and the group's size.
        dtype: of the activations.
    """
    part = batch.select(indices)
    lengths = part.lengths
    rank, ranks = context
    # What makes the pack divisible is a sequence of its own.
    padding = -part.num_tokens % (tensor_ranks * ranks)
    tokens = torch.cat([part.tokens, part.tokens.new_zeros(padding)]) if padding else part.tokens
    packed = PackedInputs.build(
        [*lengths, padding] if padding else lengths,
        rotary.tables(max(*lengths, padding)),
        device,
        padded=needs_padding(device, dtype),
    )
    run = len(tokens) // ranks
    return Microbatch(
        batch=part.to(device, non_blocking=True),
        tokens=to_device(tokens[None, rank * run : (rank + 1) * run], device),
        start=rank * run,
        packed=packed,
        targets=to_device(part.loss_mask.nonzero().squeeze(-1), device),
        sample_ids=part.sample_ids.tolist(),
    )
