"""The process of one trainer rank.

Invariant: it does what it is told, in order, on one thread; what it reports of progress never waits for that work.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from torch.distributed import Store

from pentad.algorithms.protocol import Loss
from pentad.cluster.meeting import join_store, open_store
from pentad.cluster.process import GROUPS, Process, check_visible, thread_share
from pentad.cluster.role_model import RoleModel
from pentad.cluster.saver import Saver, Started
from pentad.config.schema.algorithms.base import Role
from pentad.config.schema.lora import LoraSettings
from pentad.config.schema.megatron import MegatronSettings
from pentad.layout import Layout
from pentad.platform.deterministic import make_deterministic
from pentad.platform.device import Platform, enter_platform
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan
from pentad.weights.block_files import FileRecord, WriteError
from pentad.weights.constants import ModelConstants
from pentad.weights.transport.protocol import WeightChannel

if TYPE_CHECKING:
    from pentad.trainers.megatron.state import Counters
    from pentad.trainers.megatron.trainer import Trainer
    from pentad.trainers.protocol import Published


@ray.remote(concurrency_groups={**GROUPS, "save": 1})
class TrainerActor(Process):
    """One rank of every model of its component, each known by its role. Progress is in microbatches."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self.platform: Platform | None = None
        self._models: dict[Role, Trainer] = {}
        self._steps: Counter[Role] = Counter()
        self._store: Store | None = None
        self._saver = Saver(rank, {})
        self._has_shared_reference = False

    def open_meeting(self, deadline_s: float) -> str:
        """Open the store at which all ranks meet; on rank 0. Returns its address for `build`."""
        self._store, address = open_store(ray.util.get_node_ip_address(), self.world_size, deadline_s)
        return address

    def build(
        self,
        meeting: str,
        layout: Layout,
        megatron: MegatronSettings,
        roles: Mapping[Role, RoleModel],
        seed: int,
        lora: LoraSettings | None,
        neighbours: int,
    ) -> dict[str, Any]:
        """Join the other ranks and load the model in each role.

        Args:
            meeting: address of the store that rank 0 has opened.
            roles: the model of each role that the component has.
            lora: adapters to train instead of the models; the reference is then the policy with adapters off.
            neighbours: ranks of all components on this machine, this one among them.

        Returns:
            `dtype` and `device` of the models.

        Raises:
            UserError: this machine does not see the model's directory.
        """
        # Before it meets the others, who would wait for it.
        for one in roles.values():
            check_visible(one.setting, one.directory)
        # What roles differ in is read from the model of each.
        trainer = next(iter(roles.values())).settings
        if lora is not None and lora.adapter is not None:
            check_visible("model.lora.adapter", lora.adapter)
        # Megatron takes seconds to import; the driver, which imports this file, has no use for it. It warns then of
        # what Pentad does without, so the platform comes first.
        self.platform = enter_platform()
        if megatron.use_deterministic_algorithms:
            make_deterministic()
        from pentad.trainers.megatron.parallel import join_ranks, make_groups
        from pentad.trainers.megatron.state import RankState
        from pentad.trainers.megatron.trainer import Trainer
        from pentad.weights.adapters import open_adapter

        if not self.platform.is_cuda:
            torch.set_num_threads(thread_share(neighbours))
        store = self._store or join_store(meeting, self.world_size, trainer.deadline_s)
        join_ranks(self.platform, self.rank, self.world_size, store, trainer.deadline_s)
        groups = make_groups(layout, seed, trainer.deadline_s)
        self._has_shared_reference = lora is not None and "reference" in roles
        for role, one in roles.items():
            if role == "reference" and self._has_shared_reference:
                continue
            config, reader = one.open()
            steps = one.optimizer_steps
            model = Trainer(config, layout, groups, self.platform, one.settings, megatron, steps, lora, seed)
            model.load(reader, open_adapter(config, model.mapping, lora, seed))
            self._models[role] = model
        trained = [role for role, one in roles.items() if one.optimizer_steps is not None]
        self._saver = Saver(self.rank, {role: RankState(self._models[role]) for role in trained})
        return {"dtype": self.platform.dtype(trainer.dtype), "device": str(self.platform.device)}

    def logprobs(self, role: Role, batch: Batch, plan: Plan, temperature: float) -> np.ndarray | None:
        """Log-probs, float32 `[T]`; rank 0 answers for all.

        An array, because a tensor that was pickled where Megatron is imported has it imported where it arrives.
        """
        model = self._model(role)
        with model.without_adapters() if role == "reference" else nullcontext():
            logprobs, _ = model.logprobs(batch, plan, temperature, self._advance)
        self._done = 0
        return logprobs.numpy() if self.rank == 0 else None

    def values(self, role: Role, batch: Batch, plan: Plan) -> np.ndarray | None:
        """A critic's values, float32 `[T]`; rank 0 answers for all."""
        values = self._model(role).values(batch, plan, self._advance)
        self._done = 0
        return values.numpy() if self.rank == 0 else None

    def constants(self, role: Role, positions: Sequence[int]) -> ModelConstants:
        """What the layers of this rank compute with beside weights."""
        from pentad.trainers.megatron.constants import read_constants

        return read_constants(self._model(role), positions)

    def train(
        self, role: Role, minibatch: Batch, plan: Plan, loss: Loss, temperature: float
    ) -> tuple[dict[str, float], list[int], list[str]]:
        """One optimizer step; now and then the ranks compare their copies of the weights after it.

        Returns:
            metrics (the same on every rank), the ids of the samples that this rank alone answers for, and the names of
            its tensors whose gradient is not finite, if the step was skipped.

        Raises:
            ReplicaError: copies of a weight differ.
        """
        model = self._model(role)
        metrics = model.forward_backward(minibatch, plan, loss, temperature, self._advance)
        metrics |= model.step()
        self._steps[role] += 1
        if (every := model.settings.check_replicas_freq) and self._steps[role] % every == 0:
            from pentad.trainers.megatron.replicas import check_replicas

            check_replicas(model.parameters(), model.groups, tied=model.mapping.facts.tied)
        self._done = 0
        return metrics, model.trained_samples, model.not_finite

    def send_weights(self, role: Role, channel: WeightChannel, what: "Published" = "all") -> Mapping[str, int]:
        """Send the weights of this pipeline stage, from its first rank; all its ranks take part.

        Args:
            what: see `Trainer.weights`.

        Returns:
            the checksum of each tensor that this rank sent, by Hugging Face name.
        """
        model = self._model(role)
        tensors = self._noting("gathering", model.weights(what))
        if model.groups.tp.rank() == 0 and model.groups.dp_cp.rank() == 0:
            try:
                return channel.of_stage(model.groups.pp.rank()).send(tensors)
            except BaseException:
                # The other ranks of the stage still gather with this one.
                for _ in tensors:
                    pass
                raise
        for _ in tensors:
            pass
        return {}

    def reserve_save(self) -> None:
        """Begin to allocate the host memory that `start_save` copies to; returns at once."""
        self._saver.reserve()

    def start_save(self, directory: Path) -> Started:
        """Copy the state of all trained models, and begin to write it below a directory; see `Saver`."""
        enter_platform()
        return self._saver.start(directory)

    @ray.method(concurrency_group="save")
    def finish_save(self) -> Mapping[str, FileRecord] | WriteError:
        """Wait until the files of the last `start_save` are on the disk; other verbs go on meanwhile."""
        return self._saver.finish()

    def restore(self, directory: Path, counters: "Mapping[Role, Counters]") -> None:
        """Take the state of all trained models from the files below a directory; see `Saver`."""
        enter_platform()
        self._saver.restore(directory, counters)
        for role, counted in counters.items():
            self._steps[role] = counted["schedule"]

    def _model(self, role: Role) -> "Trainer":
        if role == "reference" and self._has_shared_reference:
            role = "policy"
        if role not in self._models:
            raise RuntimeError(f"the trainer has no {role} model")
        # A verb may run on another thread than the one before it.
        enter_platform()
        return self._models[role]

    def _advance(self, done: int) -> None:
        self._done = done
