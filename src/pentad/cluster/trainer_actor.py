"""The process of one trainer rank.

Invariant: it does what it is told, in order, on one thread; what it reports of progress never waits for that work.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from torch.distributed import Store

from pentad.algorithms.protocol import Loss
from pentad.cluster.meeting import join_store, open_store
from pentad.cluster.process import GROUPS, Process, check_visible, thread_share
from pentad.config.schema.megatron import MegatronSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.layout import Layout
from pentad.platform.deterministic import make_deterministic
from pentad.platform.device import Platform, enter_platform
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan

if TYPE_CHECKING:
    from pentad.trainers.megatron.trainer import Trainer

_BUCKET_BYTES = 256 << 20


@ray.remote(concurrency_groups=GROUPS)
class TrainerActor(Process):
    """One rank: the policy, and the reference where a KL penalty needs it. Progress is in microbatches."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self.platform: Platform | None = None
        self.policy: Trainer | None = None
        self.reference: Trainer | None = None
        self._store: Store | None = None

    def open_meeting(self, deadline_s: float) -> str:
        """Open the store at which all ranks meet; on rank 0. Returns its address for `build`."""
        self._store, address = open_store(ray.util.get_node_ip_address(), self.world_size, deadline_s)
        return address

    def build(
        self,
        meeting: str,
        directory: Path,
        layout: Layout,
        trainer: TrainerSettings,
        megatron: MegatronSettings,
        optimizer_steps: int,
        with_reference: bool,
        seed: int,
        neighbours: int,
    ) -> dict[str, Any]:
        """Join the other ranks and load the model.

        Args:
            meeting: address of the store that rank 0 has opened.
            neighbours: ranks on this machine, this one among them.

        Returns:
            `dtype` and `device` of the policy.

        Raises:
            UserError: this machine does not see the model's directory.
        """
        # Before it meets the others, who would wait for it.
        check_visible("model.path", directory)
        # Megatron takes seconds to import; the driver, which imports this file, has no use for it. It warns then of
        # what Pentad does without, so the platform comes first.
        self.platform = enter_platform()
        if megatron.use_deterministic_algorithms:
            make_deterministic()
        from pentad.trainers.megatron.parallel import join_ranks, make_groups
        from pentad.trainers.megatron.trainer import Trainer
        from pentad.weights.hf_files import CheckpointReader
        from pentad.weights.source import load_config

        if not self.platform.is_cuda:
            torch.set_num_threads(thread_share(neighbours))
        store = self._store or join_store(meeting, self.world_size, trainer.deadline_s)
        join_ranks(self.platform, self.rank, self.world_size, store, trainer.deadline_s)
        groups = make_groups(layout, seed, trainer.deadline_s)
        config = load_config(directory)
        reader = CheckpointReader(directory)
        self.policy = Trainer(config, layout, groups, self.platform, trainer, megatron, optimizer_steps)
        self.policy.load(reader)
        if with_reference:
            self.reference = Trainer(config, layout, groups, self.platform, trainer, megatron, None)
            self.reference.load(reader)
        return {"dtype": self.policy.dtype, "device": str(self.platform.device)}

    def logprobs(self, batch: Batch, plan: Plan, temperature: float, of_reference: bool) -> np.ndarray | None:
        """Log-probs, float32 `[T]`; rank 0 answers for all.

        An array, because a tensor that was pickled where Megatron is imported has it imported where it arrives.
        """
        model = self._policy if not of_reference else self._reference
        logprobs, _ = model.logprobs(batch, plan, temperature, self._advance)
        self._done = 0
        return logprobs.numpy() if self.rank == 0 else None

    def train(self, batch: Batch, plan: Plan, loss: Loss, temperature: float) -> tuple[dict[str, float], list[int]]:
        """One optimizer step on one minibatch.

        Returns:
            metrics (the same on every rank), and the ids of the samples that this rank alone answers for.
        """
        policy = self._policy
        metrics = policy.forward_backward(batch, plan, loss, temperature, self._advance)
        metrics |= policy.step()
        self._done = 0
        return metrics, policy.trained_samples

    def publish(self, dtype: torch.dtype | None) -> list[Any]:
        """References to buckets with the weights of this pipeline stage, from its first rank; all its ranks take part.

        Args:
            dtype: what to cast to; None keeps the policy's own.
        """
        from pentad.weights.transport.bucket import pack

        policy = self._policy
        if policy.groups.tp.rank() != 0 or policy.groups.dp_cp.rank() != 0:
            for _ in policy.weights():
                pass
            return []
        return [ray.put(bucket) for bucket in pack(policy.weights(), dtype or policy.dtype, _BUCKET_BYTES)]

    @property
    def _policy(self) -> "Trainer":
        if self.policy is None:
            raise RuntimeError("the trainer was not built")
        # A verb may run on another thread than the one before it.
        enter_platform()
        return self.policy

    @property
    def _reference(self) -> "Trainer":
        if self.reference is None:
            raise RuntimeError("there is no reference model")
        enter_platform()
        return self.reference

    def _advance(self, done: int) -> None:
        self._done = done
