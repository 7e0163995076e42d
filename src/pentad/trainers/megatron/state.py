"""What one rank holds of a trained model, to write it and to take it back: weights, masters, moments, the schedule.

Invariant: all ranks together write each element of each Hugging Face tensor once, as float32; what is read back under
any layout is equal bit for bit, so the next step is that of a run that was not interrupted. No rank talks to another.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pentad.errors import UserError
from pentad.trainers.megatron.masters import MOMENTS, Master, check_savable, masters_of
from pentad.trainers.megatron.staging import Staging
from pentad.trainers.megatron.trainer import Trainer
from pentad.weights.block_files import WEIGHT, BlockReader, FileRecord, rank_file, write_blocks
from pentad.weights.blocks import Block, cut

Counters = Mapping[str, int]
"""Where training stands: `updates` that Adam has made, and steps that the learning rate has moved (`schedule`)."""


@dataclass(frozen=True)
class Piece:
    """A rectangle of a Hugging Face tensor that this rank writes; `tensor` is float32 `[elements]`."""

    kind: str
    block: Block
    tensor: Tensor


@dataclass(frozen=True)
class Staged:
    """Pieces in host memory. It is used again by the next `stage`, so they must be written before."""

    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """Of all pieces."""
        return sum(piece.tensor.nbytes for piece in self.pieces)

    def write(self, directory: Path, rank: int) -> FileRecord:
        """Write this rank's file; on any thread.

        Raises:
            OSError: see `write_blocks`.
        """
        items = ((piece.kind, piece.block, piece.tensor) for piece in self.pieces)
        return write_blocks(directory / rank_file(rank), items)


class RankState:
    """The state of one trainer on one rank.

    Args:
        trainer: one that trains; parameters, masters and layout must stay what they are.

    Raises:
        UserError: its optimizer holds something that would be lost; see `check_savable`.
    """

    def __init__(self, trainer: Trainer) -> None:
        if trainer.optimizer is None or trainer.schedule is None:
            raise ValueError("a model that is never trained has no state")
        check_savable(trainer.optimizer)
        self._trainer = trainer
        self._masters = list(masters_of(trainer.optimizer, trainer.parameters()))
        self._written = [master for master in self._masters if self._is_written(master)]
        self._staging: Future[Staging] | None = None

    def counters(self) -> dict[str, int]:
        """Where training stands; see `Counters`. A rank that holds no masters cannot tell of `updates`.

        Raises:
            RuntimeError: parameters of one rank have seen different numbers of updates.
        """
        steps = [master.state["step"] for master in self._masters if master.state]
        # One look at the device for all of them.
        updates = {int(step) for step in torch.stack(steps).tolist()} if steps else {0}
        if len(updates) > 1:
            raise RuntimeError(f"parameters have seen {sorted(updates)} updates")
        known = {"updates": updates.pop()} if self._masters else {}
        return {**known, "schedule": self._trainer.schedule.num_steps}

    def pieces(self) -> Iterator[Piece]:
        """What this rank writes, as it is held; moments are left out before the first update."""
        return self._pieces(self._tensors())

    def reserve(self) -> None:
        """Begin to allocate the host memory for `stage`, on a thread: locking pages takes a second for some GiB."""
        if self._staging is None:
            elements = sum(master.tensor.numel() for master in self._written) * (1 + len(MOMENTS))
            thread = ThreadPoolExecutor(1, thread_name_prefix="staging")
            self._staging = thread.submit(Staging, elements, self._trainer.platform.device)
            thread.shutdown(wait=False)

    def stage(self) -> Staged:
        """Copy all pieces to host memory, which every call uses again.

        Raises:
            UserError: there is not enough memory.
        """
        self.reserve()
        tensors = list(self._tensors())
        try:
            staging = self._staging.result()
        except UserError:
            self._staging = None  # the next save asks for the memory again
            raise
        copies = staging.copy([tensor for _, _, tensor in tensors])
        pairs = zip(tensors, copies, strict=True)
        return Staged(tuple(self._pieces((kind, master, copy) for (kind, master, _), copy in pairs)))

    @torch.no_grad()
    def load(self, reader: BlockReader, counters: Counters) -> None:
        """Take the state of a checkpoint: weights, masters, moments, Adam's counts and the schedule.

        Learning rates then are those of the present settings at that number of steps.

        Args:
            counters: of the whole trainer, when the checkpoint was made.

        Raises:
            UserError: the files do not hold what this rank needs.
        """
        for name, parameter in self._trainer.parameters():
            if not parameter.requires_grad:  # frozen beside adapters, and as the model's own files have it
                continue
            _read(reader, WEIGHT, self._blocks(name, parameter), 0, parameter.data.view(-1))
        for master in self._masters:
            blocks = self._blocks(master.name, master.parameter)
            # In float32 the parameter is its own master.
            if master.parameter.dtype != torch.float32:
                _read(reader, WEIGHT, blocks, master.start, master.tensor.view(-1))
            if not counters["updates"]:
                master.forget_state()
                continue
            state = master.make_state(counters["updates"])
            for kind in MOMENTS:
                _read(reader, kind, blocks, master.start, state[kind].view(-1))
        self._trainer.schedule.num_steps = counters["schedule"]
        self._trainer.schedule.step(increment=0)

    def _is_written(self, master: Master) -> bool:
        """Whether no rank before this one has the same elements."""
        groups = self._trainer.groups
        # Megatron marks what is held in the buffers of experts, whose replicas are other ranks.
        replicas = groups.dp_cp if getattr(master.parameter, "allreduce", True) else groups.expt_dp
        return self._trainer.mapping.is_first_copy(master.name) and (master.is_shared_out or replicas.rank() == 0)

    def _tensors(self) -> Iterator[tuple[str, Master, Tensor]]:
        """All flat runs that this rank writes."""
        has_moments = bool(self.counters().get("updates"))
        for master in self._written:
            yield WEIGHT, master, master.tensor.detach().view(-1)
            if has_moments:
                yield from ((kind, master, master.state[kind].view(-1)) for kind in MOMENTS)

    def _pieces(self, runs: Iterable[tuple[str, Master, Tensor]]) -> Iterator[Piece]:
        for kind, master, flat in runs:
            for block in self._blocks(master.name, master.parameter):
                for part in cut(block, master.start, master.stop):
                    yield Piece(kind, part, flat[part.start - master.start : part.stop - master.start])

    def _blocks(self, name: str, parameter: Tensor) -> list[Block]:
        return self._trainer.mapping.blocks(name, tuple(parameter.shape))


def _read(reader: BlockReader, kind: str, blocks: list[Block], start: int, flat: Tensor) -> None:
    """Fill a run of a parameter that begins at `start`; padding, which no block has, becomes 0."""
    parts = [part for block in blocks for part in cut(block, start, start + flat.numel())]
    if sum(part.elements for part in parts) < flat.numel():
        flat.zero_()
    for part in parts:
        reader.read(kind, part, flat[part.start - start : part.stop - start].view(part.sizes))
