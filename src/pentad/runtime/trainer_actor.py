"""The process of one trainer rank.

Invariant: it does what it is told, in order, on one thread; what it reports of progress never waits for that work.
"""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from torch import Tensor
from transformers import AutoConfig

from pentad.algorithms.protocol import Loss
from pentad.config.megatron import MegatronSettings
from pentad.config.trainer import TrainerSettings
from pentad.data.batch import Batch
from pentad.data.plan import Plan
from pentad.layout import Layout
from pentad.models.checkpoint import CheckpointReader
from pentad.platform.device import Platform, enter_platform
from pentad.sync.bucket import pack

if TYPE_CHECKING:
    from pentad.trainer.trainer import Trainer

_BUCKET_BYTES = 256 << 20


@ray.remote(concurrency_groups={"control": 1})
class TrainerActor:
    """One rank: the policy, and the reference where a KL penalty needs it."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.platform: Platform | None = None
        self.policy: Trainer | None = None
        self.reference: Trainer | None = None
        self._done = 0

    @ray.method(concurrency_group="control")
    def progress(self) -> int:
        """Microbatches finished in the current verb."""
        return self._done

    def address(self) -> str:
        """Where the ranks may meet: a free port of this node."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

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
        threads: int,
    ) -> dict[str, Any]:
        """Join the other ranks and load the model.

        Returns:
            `dtype` and `device` of the policy.
        """
        # Megatron takes seconds to import; the driver, which imports this file, has no use for it.
        from pentad.trainer.parallel import join_ranks, make_groups
        from pentad.trainer.trainer import Trainer

        self.platform = enter_platform()
        if not self.platform.is_cuda:
            torch.set_num_threads(threads)
        join_ranks(self.platform, self.rank, self.world_size, meeting, trainer.deadline_s)
        groups = make_groups(layout, seed, trainer.deadline_s)
        config = AutoConfig.from_pretrained(directory)
        reader = CheckpointReader(directory)
        self.policy = Trainer(config, layout, groups, self.platform, trainer, megatron, optimizer_steps)
        self.policy.load(reader)
        if with_reference:
            self.reference = Trainer(config, layout, groups, self.platform, trainer, megatron, None)
            self.reference.load(reader)
        return {"dtype": self.policy.dtype, "device": str(self.platform.device)}

    def logprobs(self, batch: Batch, plan: Plan, temperature: float, of_reference: bool) -> tuple[Tensor, Tensor] | None:
        """Log-probs and entropies, float32 `[T]`; rank 0 answers for all."""
        model = self._policy if not of_reference else self._reference
        self._done = 0
        result = model.logprobs(batch, plan, temperature, self._advance)
        return result if self.rank == 0 else None

    def train(self, batch: Batch, plan: Plan, loss: Loss, temperature: float) -> tuple[dict[str, float], list[int]]:
        """One optimizer step on one minibatch.

        Returns:
            metrics (the same on every rank), and the ids of the samples that this rank alone answers for.
        """
        policy = self._policy
        self._done = 0
        metrics = policy.forward_backward(batch, plan, loss, temperature, self._advance)
        metrics |= policy.step()
        return metrics, policy.trained_samples

    def publish(self, dtype: torch.dtype | None) -> list[Any]:
        """References to buckets with the weights of this pipeline stage, from its first rank; all its ranks take part.

        Args:
            dtype: what to cast to; None keeps the policy's own.
        """
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
