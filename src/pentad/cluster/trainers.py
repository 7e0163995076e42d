"""The trainer as the driver sees it: one object, however many ranks.

Invariant: every sample of a minibatch is trained on by exactly one data-parallel rank; that is counted.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from pentad.algorithms.protocol import Loss
from pentad.cluster.cluster import Cluster
from pentad.cluster.gang import Progress
from pentad.cluster.trainer_actor import TrainerActor
from pentad.config.schema.run import RunSettings
from pentad.samples.batch import Batch
from pentad.samples.packing import Plan, plan_microbatches
from pentad.weights.hf_files import write_checkpoint
from pentad.weights.source import companion_files


class Trainers:
    """All ranks of the trainer.

    Args:
        settings: of the run.
        directory: the model as a Hugging Face directory.
        cluster: where they are placed.
        optimizer_steps: of the whole run.
    """

    def __init__(self, settings: RunSettings, directory: Path, cluster: Cluster, optimizer_steps: int) -> None:
        component = cluster.allocation.trainer
        self._layout = component.layout
        self._max_tokens = settings.trainer.tokens_per_microbatch
        self._gang = cluster.spawn(TrainerActor, "trainer rank", component, settings.trainer.deadline_s)
        self._arguments = (
            directory,
            self._layout,
            settings.trainer,
            settings.megatron,
            optimizer_steps,
            "reference" in settings.algorithm.roles,
            settings.experiment.seed,
        )
        self._deadline_s = settings.trainer.deadline_s
        self.dtype = torch.float32

    async def build(self) -> None:
        """Have the model loaded on every rank, once their processes run."""
        gang, phase = self._gang, "start-up"
        meeting = await gang.call_rank(0, "open_meeting", self._deadline_s, phase=phase)
        arguments = [(meeting, *self._arguments, gang.neighbours(rank)) for rank in range(len(gang))]
        self.dtype = (await gang.call_each("build", arguments, phase))[0]["dtype"]

    async def logprobs(
        self, batch: Batch, temperature: float, *, of_reference: bool = False, progress: Progress
    ) -> Tensor:
        """Log-probs of the tokens in the loss mask, float32 `[T]`."""
        phase = "reference log-probs" if of_reference else "log-probs"
        plan = self._plan(batch)
        results = await self._gang.call(
            "logprobs", ray.put(batch), plan, temperature, of_reference, phase=phase, progress=progress
        )
        return torch.tensor(results[0])  # a copy: the object store's memory must not be written to

    async def train(
        self, minibatch: Batch, loss: Loss, temperature: float, progress: Progress
    ) -> tuple[dict[str, float], int]:
        """One optimizer step; returns its metrics and the number of samples that were trained on.

        Raises:
            AssertionError: a sample was trained on twice or not at all.
        """
        plan = self._plan(minibatch)
        results = await self._gang.call(
            "train", ray.put(minibatch), plan, loss, temperature, phase="training", progress=progress
        )
        consumed = Counter(sample for _, samples in results for sample in samples)
        if consumed != Counter(minibatch.sample_ids.tolist()):
            raise AssertionError("a sample was trained on twice or not at all")
        return results[0][0], consumed.total()

    async def publish(self, dtype: torch.dtype | None = None) -> list[Any]:
        """References to buckets that hold all weights, cast to `dtype` (None keeps the trainer's)."""
        return [ref for refs in (await self._gang.call("publish", dtype, phase="gathering weights")) for ref in refs]

    async def export(self, source: Path, target: Path) -> None:
        """Write the model as a Hugging Face directory, on the driver's machine.

        Args:
            source: the directory that training started from, for everything beside the weights.
        """
        refs = await self.publish()

        def tensors() -> Iterator[tuple[str, Tensor]]:
            while refs:
                # Taken out of the list, a bucket's memory is free again once it is written.
                yield from ray.get(refs.pop(0)).tensors()

        write_checkpoint(tensors(), target, companion_files(source), (source / "config.json").read_text())

    def _plan(self, batch: Batch) -> Plan:
        layout = self._layout
        # Interleaved schedules deal microbatches to the stages in turn.
        multiple = layout.pipeline if layout.virtual > 1 else 1
        return plan_microbatches(batch.lengths, layout.data, self._max_tokens, multiple=multiple)
