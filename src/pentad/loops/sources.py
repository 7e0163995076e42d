"""Where a step's batch comes from: rollouts, or examples that have their responses.

Invariant: each batch is given once; a source that generates needs the engines at the version that is trained.
"""

import asyncio
import re
from collections.abc import Container, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Protocol

import torch

from pentad.data.prompts import EncodedExamples
from pentad.data.sampler import Order
from pentad.loops.experience import Experience
from pentad.loops.group import Group
from pentad.loops.journal import Journal
from pentad.loops.sampler import GroupSampler
from pentad.loops.scoring import Scorer
from pentad.samples.batch import Batch


class Source(Protocol):
    """Gives batches.

    Attributes:
        generates: it needs engines that hold the current weights.
    """

    generates: bool

    async def take(self, step: int, versions: Container[int]) -> tuple[Batch, dict[str, float]]:
        """The batch of a step, and metrics of how it came about.

        Args:
            versions: of the weights that may have sampled it.
        """
        ...

    async def release(self) -> None:
        """The batch was trained on and the new weights are published."""
        ...

    async def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Rollouts:
    """Groups from the engines, scored.

    Args:
        sampler: that makes the groups.
        experience: the slots between it and the trainer.
        samples: of a step.
    """

    generates = True

    def __init__(
        self, sampler: GroupSampler, experience: Experience, scorer: Scorer, journal: Journal, samples: int
    ) -> None:
        self._sampler, self._experience, self._scorer, self._journal = sampler, experience, scorer, journal
        self._samples = samples

    async def take(self, step: int, versions: Container[int]) -> tuple[Batch, dict[str, float]]:
        """The batch of a step.

        Raises:
            UserError: the reward of every sample failed.
            AssertionError: a token was sampled by weights of another version.
        """
        before = self._sampler.generated
        advance = self._journal.progress("rollout", self._samples)
        self._sampler.on_sample = lambda: advance(self._sampler.generated - before)
        taking = asyncio.ensure_future(self._experience.take())
        try:
            with self._journal.timed("rollout"):
                await asyncio.sleep(0)  # the groups start
                await asyncio.sleep(0)  # their requests are made
                quiet = asyncio.ensure_future(self._sampler.quiet.wait())
                await asyncio.wait([taking, quiet], return_when=asyncio.FIRST_COMPLETED)
                quiet.cancel()
            if not taking.done():
                self._journal.progress("reward")
            with self._journal.timed("reward"):
                groups = await taking
        finally:
            taking.cancel()
        finished = [*groups, *self._experience.rejected]
        self._scorer.check([result for group in finished for result in group.results])
        trajectories = [trajectory for group in groups for trajectory in group.trajectories]
        stale = {trajectory.oldest_version for trajectory in trajectories if trajectory.oldest_version not in versions}
        if stale:
            raise AssertionError(f"samples of weight versions {sorted(stale)}, expected {versions}")
        self._journal.keep_samples(step, "train", groups)
        metrics = {
            **_components(groups),
            **_metrics(groups),
            "reward/failures": sum(result.failure is not None for group in finished for result in group.results),
            "data/samples_generated": self._sampler.generated - before,
            "data/groups_dropped": len(self._experience.rejected),
        }
        return Batch.from_trajectories(trajectories), metrics

    async def release(self) -> None:
        await self._experience.release()

    async def close(self) -> None:
        await self._experience.close()

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self._sampler.state_dict(), "experience": self._experience.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state["sampler"])
        self._experience.load_state_dict(state["experience"])


class Examples:
    """Rows with their responses, in the order of the sampler.

    Args:
        examples: prompt and response tokens.
        rows_per_step: examples of a batch.
    """

    generates = False

    def __init__(self, examples: EncodedExamples, order: Order, rows_per_step: int) -> None:
        self._examples, self._order, self._per_step = examples, order, rows_per_step

    async def take(self, step: int, versions: Container[int]) -> tuple[Batch, dict[str, float]]:
        chosen = self._order.next(self._per_step)
        batch = Batch.from_sequences([self._examples.examples[index] for index in chosen])
        if self._examples.masks:
            masks = [(torch.zeros(len(self._examples.examples[i][0])), self._examples.mask(i)) for i in chosen]
            batch = replace(batch, loss_mask=torch.cat([part.bool() for pair in masks for part in pair]))
        return batch, {}

    async def release(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.load_state_dict(state["order"])


def _components(groups: Sequence[Group]) -> dict[str, float]:
    """Means of the parts of rewards: of several rewards, and of one that returns a dict with more than a score."""
    found: dict[str, list[float]] = {}
    for result in (result for group in groups for result in group.results):
        for name, value in {**result.metrics, **result.components}.items():
            # As a metric may be named; the keys of a dict may be anything.
            found.setdefault(re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("_.-") or "part", []).append(value)
    return {f"reward/{name}": fmean(values) for name, values in found.items()}


def _metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What the samples and their rewards look like. A sample that was left out has no reward."""
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    reasons = [reason for group in groups for reason in group.finish_reasons]
    scores = torch.tensor([trajectory.reward for trajectory in trajectories if trajectory.status != "failed"])
    return {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std(correction=0)),
        "rollout/response_length_mean": fmean(int(trajectory.sampled.sum()) for trajectory in trajectories),
        "rollout/truncated_fraction": fmean(reason == "length" for reason in reasons),
    }
