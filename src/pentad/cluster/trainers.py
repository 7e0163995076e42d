"""The trainer as the driver sees it: one object, however many ranks.

Invariant: every sample of a minibatch is trained on by exactly one data-parallel rank; that is counted.

Example::

    trainers = Trainers(settings, directory, cluster, {"policy": 100, "reference": None}, store)
    await trainers.build()
    scores = await trainers.role("reference").logprobs(batch, 1.0, progress)
"""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
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
from pentad.cluster.role_model import RoleModel
from pentad.cluster.saver import Started, merge
from pentad.cluster.trainer_actor import TrainerActor
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.run import RunSettings
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan, plan_microbatches
from pentad.trainers.protocol import Published, Trained
from pentad.weights.block_files import FileRecord, WriteError
from pentad.weights.constants import ModelConstants
from pentad.weights.transport.protocol import WeightChannel

# Longest time that a checkpoint is written.
_WRITE_S = 24 * 3600.0


class Trainers:
    """All ranks of the trainer, with one model a role.

    Args:
        settings: of the run.
        directory: the model as a Hugging Face directory, in every role.
        cluster: where they are placed.
        roles: optimizer steps of the whole run in each role; None for a model that is never trained.
        store: takes exported weights to the driver.
        critic: what the critic begins with, as a directory; None: as the others.
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
        component = cluster.allocation.trainer
        self.layout = component.layout
        self.roles = dict(roles)
        self.store = store
        self.gang = cluster.spawn(TrainerActor, "trainer rank", component, settings.trainer.deadline_s)
        self.dtype = torch.float32
        self._max_tokens = settings.trainer.tokens_per_microbatch
        models = {role: _model_of(role, steps, settings, directory, critic) for role, steps in roles.items()}
        self._arguments = (
            self.layout,
            settings.megatron,
            models,
            settings.experiment.seed,
            settings.model.adapters,
        )
        self.lora = settings.model.adapters

    async def build(self) -> None:
        """Have the models loaded on every rank, once their processes run."""
        gang, phase = self.gang, "start-up"
        meeting = await gang.call_rank(0, "open_meeting", gang.deadline_s, phase=phase)
        arguments = [(meeting, *self._arguments, gang.neighbours(rank)) for rank in range(len(gang))]
        self.dtype = (await gang.call_each("build", arguments, phase))[0]["dtype"]

    async def reserve_save(self) -> None:
        """Have the ranks begin to allocate the host memory that a save needs; returns before they have."""
        await self.gang.call("reserve_save", phase="start-up")

    async def start_save(self, directory: Path) -> Started:
        """Have the state of all trained models copied, and written to `directory/<role>/rank-<rank>.safetensors`.

        Returns when it is copied; `finish_save` waits for the files. A rank that still writes an earlier save ends that
        first.

        Args:
            directory: on a file system that all ranks see.

        Raises:
            UserError: a rank does not see the directory, or has not enough memory for the copy.
        """
        return merge(await self.gang.call("start_save", directory, phase="saving"))

    async def finish_save(self) -> dict[str, FileRecord]:
        """Wait for the files of the last `start_save`; other calls may be made meanwhile.

        Returns:
            what was written, by `<role>/<file>`.

        Raises:
            WriteError: a rank could not write its files; `is_full` tells a full disk. No rank writes any more then.
        """
        # A slow disk is no reason to end the run; the next save waits.
        call = self.gang.start("finish_save")
        answers = await self.gang.finish(call, "writing a checkpoint", deadline_s=_WRITE_S)
        for answer in answers:
            if isinstance(answer, WriteError):
                raise answer
        return {name: record for answer in answers for name, record in answer.items()}

    async def restore(self, directory: Path, counters: Mapping[Role, Mapping[str, int]]) -> None:
        """Have all trained models take the state that `start_save` wrote there, under whatever layout.

        Args:
            counters: as `start_save` returned them.

        Raises:
            UserError: a rank does not see the directory, or the files do not hold what the models need.
        """
        await self.gang.call("restore", directory, counters, phase="restoring the trainer")

    def role(self, role: Role) -> "RoleTrainer":
        """The model in a role.

        Raises:
            ValueError: there is none.
        """
        return RoleTrainer(self, role)

    def plan(self, batch: Batch) -> Plan:
        """How a batch is packed and shared out."""
        # Interleaved schedules deal microbatches to the stages in turn.
        multiple = self.layout.pipeline if self.layout.virtual > 1 else 1
        pairs = batch.per_sequence.get("pair_ids")
        together = None if pairs is None else pairs.tolist()
        return plan_microbatches(
            batch.lengths, self.layout.data, self._max_tokens, multiple=multiple, together=together
        )


class RoleTrainer:
    """One model on all ranks; satisfies `pentad.loops.roles.Trainer`.

    Args:
        trainers: the ranks.
        role: of the model.

    Raises:
        ValueError: the trainer has no model in this role.
    """

    def __init__(self, trainers: Trainers, role: Role) -> None:
        if role not in trainers.roles:
            raise ValueError(f"the trainer has no {role} model")
        self._trainers = trainers
        self._role: Role = role

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self._trainers.dtype

    async def logprobs(self, batch: Batch, temperature: float, progress: Progress) -> Tensor:
        """Log-probs of the tokens in the loss mask, float32 `[T]`, 0 elsewhere."""
        phase = "log-probs" if self._role == "policy" else f"{self._role} log-probs"
        arguments = (self._role, ray.put(batch), self._trainers.plan(batch), temperature)
        results = await self._trainers.gang.call("logprobs", *arguments, phase=phase, progress=progress)
        return torch.tensor(results[0])  # a copy: the object store's memory must not be written to

    async def values(self, batch: Batch, progress: Progress) -> Tensor:
        """A critic's values of the tokens in the loss mask, float32 `[T]`, 0 elsewhere."""
        arguments = (self._role, ray.put(batch), self._trainers.plan(batch))
        results = await self._trainers.gang.call("values", *arguments, phase="values", progress=progress)
        return torch.tensor(results[0])

    async def constants(self, positions: Sequence[int]) -> ModelConstants:
        """What the whole model computes with beside weights.

        Raises:
            SyncError: ranks differ.
        """
        parts = await self._trainers.gang.call("constants", self._role, list(positions), phase="probing the trainer")
        return reduce(or_, parts)

    async def train(self, minibatch: Batch, loss: Loss, temperature: float, progress: Progress) -> Trained:
        """One optimizer step.

        Raises:
            AssertionError: a sample was trained on twice or not at all.
        """
        _pickle_by_value(loss)
        arguments = (self._role, ray.put(minibatch), self._trainers.plan(minibatch), loss, temperature)
        phase = "training" if self._role == "policy" else f"training of the {self._role}"
        results = await self._trainers.gang.call("train", *arguments, phase=phase, progress=progress)
        consumed = [sample for _, samples, _ in results for sample in samples]
        if Counter(consumed) != Counter(minibatch.sample_ids.tolist()):
            raise AssertionError("a sample was trained on twice or not at all")
        not_finite = dict.fromkeys(name for _, _, names in results for name in names)
        return Trained(results[0][0], tuple(consumed), tuple(not_finite))

    def start_sending(self, channel: WeightChannel, what: Published = "all") -> Call:
        """Have the weights sent, by one rank of each pipeline stage; each rank answers with the checksums it sent."""
        return self._trainers.gang.start("send_weights", self._role, channel, what)

    async def export(self, source: Path, target: Path) -> None:
        """Write the model as a Hugging Face directory, or its adapters as PEFT does, on the driver's machine.

        Args:
            source: the directory that training started from, for everything beside the weights.
        """
        channel = self._trainers.store.channel(self._trainers.layout.pipeline, 1, None)
        lora = self._trainers.lora
        sending = self._trainers.gang.finish(
            self.start_sending(channel, "all" if lora is None else "adapters"), "export"
        )
        config = (source / "config.json").read_text(encoding="utf-8")
        if self._role == "critic":
            from pentad.weights.critic import critic_json

            config = critic_json(config)
        await write_export(channel, sending, source, target, lora, config)


def _model_of(
    role: Role, optimizer_steps: int | None, settings: RunSettings, directory: Path, critic: Path | None
) -> RoleModel:
    trainer = settings.trainer
    if role != "critic":
        return RoleModel(directory, "model.path", trainer, optimizer_steps)
    own = settings.critic
    trainer = trainer.model_copy(update={"optimizer": own.optimizer, "schedule": own.schedule})
    setting = "model.path" if critic is None else "critic.model"
    return RoleModel(critic or directory, setting, trainer, optimizer_steps, is_critic=True)


def _pickle_by_value(loss: Loss) -> None:
    """Have the code of a loss of the user's travel with it: the ranks need not find its module."""
    module = sys.modules[type(loss).__module__]
    if module.__name__.partition(".")[0] not in ("pentad", "__main__"):
        cloudpickle.register_pickle_by_value(module)
