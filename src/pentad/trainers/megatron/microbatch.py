"""One microbatch on its device, ready for the model.

Invariant: what is padded for the layout's sake carries no loss and changes no log-prob.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pentad.layout.context import ContextMethod
from pentad.platform.device import to_device
from pentad.samples.batch import Batch
from pentad.trainers.megatron.attention import needs_padding
from pentad.trainers.megatron.packing import PackedInputs
from pentad.trainers.megatron.rotary import RotaryTable
from pentad.trainers.megatron.runs import runs_of


@dataclass
class Microbatch:
    """A pack and where its log-probs belong.

    Attributes:
        batch: the sequences, on the device, without padding.
        tokens: int64 `[1, t / context]`, this context-parallel rank's part of the pack, which is padded to a multiple
            of the parts that it is split into; see `runs_of`.
        packed: bounds and rotary tables of the whole pack, of length t.
        targets: int64 `[n]`, token indices in `batch` whose log-probs are wanted and predicted by this rank: it has
            the token before each.
        rows: int64 `[n]`, the place of the token before each target in `tokens`.
        sample_ids: host copy of the sequences' ids.
    """

    batch: Batch
    tokens: Tensor
    packed: PackedInputs
    targets: Tensor
    rows: Tensor
    sample_ids: list[int]


def make_microbatch(
    batch: Batch,
    indices: tuple[int, ...],
    *,
    tensor_ranks: int,
    context: tuple[int, int],
    method: ContextMethod | None,
    rotary: RotaryTable,
    device: torch.device,
    dtype: torch.dtype,
) -> Microbatch:
    """Pack some sequences of a batch.

    Args:
        indices: which sequences, in order.
        tensor_ranks: tensor-parallel ranks, which split the tokens between layers.
        context: this rank's place in its context-parallel group, and the group's size.
        method: how the group shares attention.
        dtype: of the activations.
    """
    part = batch.select(indices)
    lengths = part.lengths
    rank, ranks = context
    gathers = method == "all_gather"
    # What makes the pack divisible is a sequence of its own.
    padding = -part.num_tokens % (ranks * (math.lcm(tensor_ranks, 2) if gathers else tensor_ranks))
    tokens = torch.cat([part.tokens, part.tokens.new_zeros(padding)]) if padding else part.tokens
    runs = runs_of(len(tokens), rank, ranks, method)
    packed = PackedInputs.build(
        [*lengths, padding] if padding else lengths,
        rotary.tables(max(*lengths, padding)),
        device,
        padded=needs_padding(device, dtype),
        runs=runs if gathers else (),
    )
    targets, rows = _own_targets(part.loss_mask, runs)
    return Microbatch(
        batch=part.to(device, non_blocking=True),
        tokens=to_device(torch.cat([tokens[run.start : run.stop] for run in runs])[None], device),
        packed=packed,
        targets=to_device(targets, device),
        rows=to_device(rows, device),
        sample_ids=part.sample_ids.tolist(),
    )


def _own_targets(wanted: Tensor, runs: tuple[range, ...]) -> tuple[Tensor, Tensor]:
    """Of the wanted tokens those whose predecessor is in the runs, and the places of these predecessors there."""
    places = torch.cat([torch.arange(run.start, run.stop) for run in runs])
    row = torch.full((max(len(wanted), int(places.max()) + 1),), -1)
    row[places] = torch.arange(len(places))
    targets = wanted.nonzero().squeeze(-1)
    rows = row[targets - 1]
    return targets[rows >= 0], rows[rows >= 0]
