"""The trainer as the driver sees it: one object, however many components and ranks.

Invariant: every sample of a minibatch is trained on by exactly one data-parallel rank; that is counted. What is asked
of a model goes to the ranks of its component alone.

Example::

    trainers = Trainers(settings, directory, cluster, {"policy": 100, "reference": None}, store)
    await trainers.build()
    scores = await trainers.role("reference").logprobs(batch, 1.0, progress)
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add, or_
from pathlib import Path

import ray
import torch
from ray import cloudpickle
from torch import Tensor

from pentad.algorithms.protocol import Loss
from pentad.cluster.cluster import Cluster
from pentad.cluster.export import write_export
from pentad.cluster.gang import Progress
from pentad.cluster.object_store import ObjectStore
from pentad.cluster.processes import Call
from pentad.cluster.saver import Started, merge
from pentad.cluster.trainer_ranks import TrainerRanks
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.run import RunSettings
from pentad.samples.batch import Batch
from pentad.trainers.protocol import Published, Trained
from pentad.weights.block_files import FileRecord, WriteError
from pentad.weights.constants import ModelConstants
from pentad.weights.transport.protocol import WeightChannel

# Longest time that a checkpoint is written.
_WRITE_S = 24 * 3600.0


class Trainers:
    """All models of the run, each on the ranks of its component.

    Args:
        settings: of the run.
        directory: the model as a Hugging Face directory, in every role.
        cluster: where they are placed.
        roles: optimizer steps of the whole run in each role; None for a model that is never trained.
        store: takes exported weights to the driver.
        critic: what the critic begins with, as a directory; None: as the others.

    Attributes:
        ranks: of each component; those of the policy first.
    """

    def __init__(
        self,
        settings: RunSettings,
        directory: Path,
        cluster: Cluster,
        roles: Mapping[Role, int | None],
        store: ObjectStore,
        critic: Path | None = None,
    ) -> None:
        self.store = store
        self.lora = settings.model.adapters
        self.ranks = [
            TrainerRanks(settings, directory, cluster, component, {role: roles[role] for role in mine}, critic)
            for component, mine in cluster.allocation.homes(roles).items()
        ]

    @property
    def dtype(self) -> torch.dtype:
        """Of the policy's weights."""
        return self.ranks[0].dtype

    async def build(self) -> None:
        """Have the models loaded on every rank, once their processes run."""
        neighbours = reduce(add, (ranks.machines for ranks in self.ranks))
        await asyncio.gather(*(ranks.build(neighbours) for ranks in self.ranks))

    async def reserve_save(self) -> None:
        """Have the ranks begin to allocate the host memory that a save needs; returns before they have."""
        await asyncio.gather(*(ranks.gang.call("reserve_save", phase="start-up") for ranks in self._trained))

    async def start_save(self, directory: Path) -> Started:
        """Have the state of all trained models copied, and written to `directory/<role>/rank-<rank>.safetensors`.

        Returns when it is copied; `finish_save` waits for the files. A rank that still writes an earlier save ends that
        first.

        Args:
            directory: on a file system that all ranks see.

        Raises:
            UserError: a rank does not see the directory, or has not enough memory for the copy.
        """
        calls = (ranks.gang.call("start_save", directory, phase="saving") for ranks in self._trained)
        return merge([started for answers in await asyncio.gather(*calls) for started in answers])

    async def finish_save(self) -> dict[str, FileRecord]:
        """Wait for the files of the last `start_save`; other calls may be made meanwhile.

        Returns:
            what was written, by `<role>/<file>`.

        Raises:
            WriteError: a rank could not write its files; `is_full` tells a full disk. No rank writes any more then.
        """
        # A slow disk is no reason to end the run; the next save waits.
        gangs = [ranks.gang for ranks in self._trained]
        calls = [gang.finish(gang.start("finish_save"), "writing a checkpoint", deadline_s=_WRITE_S) for gang in gangs]
        answers = [answer for of_gang in await asyncio.gather(*calls) for answer in of_gang]
        for answer in answers:
            if isinstance(answer, WriteError):
                raise answer
        return {name: record for answer in answers for name, record in answer.items()}

    async def restore(self, directory: Path, counters: Mapping[Role, Mapping[str, int]]) -> None:
        """Have all trained models take the state that `start_save` wrote there, under whatever allocation.

        Args:
            counters: as `start_save` returned them.

        Raises:
            UserError: a rank does not see the directory, or the files do not hold what the models need.
        """
        phase = "restoring the trainer"
        await asyncio.gather(*(r.gang.call("restore", directory, counters, phase=phase) for r in self._trained))

    @property
    def _trained(self) -> list[TrainerRanks]:
        return [ranks for ranks in self.ranks if ranks.trains]

    def role(self, role: Role) -> "RoleTrainer":
        """The model in a role.

        Raises:
            ValueError: there is none.
        """
        return RoleTrainer(self, role)

    def of(self, role: Role) -> TrainerRanks:
        """The ranks that have the model in a role.

        Raises:
            ValueError: there is none.
        """
        for ranks in self.ranks:
            if role in ranks.roles:
                return ranks
        raise ValueError(f"the trainer has no {role} model")


class RoleTrainer:
    """One model on all its ranks; satisfies `pentad.loops.roles.Trainer`.

    Args:
        trainers: all models.
        role: of the model.

    Raises:
        ValueError: the trainer has no model in this role.
    """

    def __init__(self, trainers: Trainers, role: Role) -> None:
        self._trainers, self._ranks = trainers, trainers.of(role)
        self._role: Role = role

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._ranks.dtype

    async def logprobs(self, batch: Batch, temperature: float, progress: Progress) -> Tensor:
        """Log-probs of the tokens in the loss mask, float32 `[T]`, 0 elsewhere."""
        phase = "log-probs" if self._role == "policy" else f"{self._role} log-probs"
        arguments = (self._role, ray.put(batch), self._ranks.plan(batch), temperature)
        results = await self._ranks.gang.call("logprobs", *arguments, phase=phase, progress=progress)
        return torch.tensor(results[0])  # a copy: the object store's memory must not be written to

    async def values(self, batch: Batch, progress: Progress) -> Tensor:
        """A critic's values of the tokens in the loss mask, float32 `[T]`, 0 elsewhere."""
        arguments = (self._role, ray.put(batch), self._ranks.plan(batch))
        results = await self._ranks.gang.call("values", *arguments, phase="values", progress=progress)
        return torch.tensor(results[0])

    async def constants(self, positions: Sequence[int]) -> ModelConstants:
        """What the whole model computes with beside weights.

        Raises:
            SyncError: ranks differ.
        """
        parts = await self._ranks.gang.call("constants", self._role, list(positions), phase="probing the trainer")
        return reduce(or_, parts)

    async def train(self, minibatch: Batch, loss: Loss, temperature: float, progress: Progress) -> Trained:
        """One optimizer step.

        Raises:
            AssertionError: a sample was trained on twice or not at all.
        """
        _pickle_by_value(loss)
        arguments = (self._role, ray.put(minibatch), self._ranks.plan(minibatch), loss, temperature)
        phase = "training" if self._role == "policy" else f"training of the {self._role}"
        results = await self._ranks.gang.call("train", *arguments, phase=phase, progress=progress)
        consumed = [sample for _, samples, _ in results for sample in samples]
        if Counter(consumed) != Counter(minibatch.sample_ids.tolist()):
            raise AssertionError("a sample was trained on twice or not at all")
        not_finite = dict.fromkeys(name for _, _, names in results for name in names)
        return Trained(results[0][0], tuple(consumed), tuple(not_finite))

    def start_sending(self, channel: WeightChannel, what: Published = "all") -> Call:
        """Have the weights sent, by one rank of each pipeline stage; each rank answers with the checksums it sent."""
        return self._ranks.gang.start("send_weights", self._role, channel, what)

    async def export(self, source: Path, target: Path) -> None:
        """Write the model as a Hugging Face directory, or its adapters as PEFT does, on the driver's machine.

        Args:
            source: the directory that training started from, for everything beside the weights.
        """
        channel = self._trainers.store.channel(self._ranks.layout.pipeline, 1, None)
        lora = self._trainers.lora
        sending = self._ranks.gang.finish(self.start_sending(channel, "all" if lora is None else "adapters"), "export")
        config = (source / "config.json").read_text(encoding="utf-8")
        if self._role == "critic":
            from pentad.weights.critic import critic_json

            config = critic_json(config)
        await write_export(channel, sending, source, target, lora, config)


def _pickle_by_value(loss: Loss) -> None:
    """Have the code of a loss of the user's travel with it: the ranks need not find its module."""
    module = sys.modules[type(loss).__module__]
    if module.__name__.partition(".")[0] not in ("pentad", "__main__"):
        cloudpickle.register_pickle_by_value(module)
