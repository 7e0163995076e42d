"""Where a step's batch comes from: rollouts, or examples that have their responses.

Invariant: each batch is given once; a source that generates needs the engines at the version that is trained.
"""

import asyncio
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Protocol

import torch

from pentad.data.preferences import EncodedPreferences
from pentad.data.prompts import EncodedExamples
from pentad.data.sampler import Order
from pentad.loops.experience import Experience
from pentad.loops.group import Group
from pentad.loops.held_out import example_batch, pair_batch
from pentad.loops.journal import Journal
from pentad.loops.sampler import GroupSampler
from pentad.loops.scoring import Scorer
from pentad.loops.staleness import staleness_metrics
from pentad.samples.batch import Batch
from pentad.samples.trajectory import NOT_SAMPLED


class Source(Protocol):
    """Gives batches.

    Attributes:
        generates: it needs engines that hold the current weights.
    """

    generates: bool

    async def take(self, step: int, versions: Sequence[int]) -> tuple[Batch, dict[str, float]]:
        """The batch of a step, and metrics of how it came about.

        Args:
            versions: of the weights that may have sampled it, as they were published.
        """
        ...

    async def hold(self) -> None:
        """New weights are about to be published. Returns when no request runs that must not see them."""
        ...

    async def go_on(self) -> None:
        """They are published."""
        ...

    def sample_again(self) -> None:
        """What waits would become too old; before the first `take`."""
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
        steps: of the run.
        finish: requests that run are finished before new weights are published (`rollout.on_update: finish`).
        stale: whether samples may be older than the weights that are trained.
    """

    generates = True

    def __init__(
        self,
        sampler: GroupSampler,
        experience: Experience,
        scorer: Scorer,
        journal: Journal,
        samples: int,
        *,
        steps: int,
        finish: bool = False,
        stale: bool = False,
    ) -> None:
        self._sampler, self._experience, self._scorer, self._journal = sampler, experience, scorer, journal
        self._samples, self._steps, self._finish, self._stale = samples, steps, finish, stale
        # What the metrics of earlier steps have counted.
        self._counted = self._aborted = 0

    async def take(self, step: int, versions: Sequence[int]) -> tuple[Batch, dict[str, float]]:
        """The batch of a step.

        Raises:
            UserError: the reward of every sample failed.
            AssertionError: a token was sampled by weights of another version.
        """
        self._experience.steps_left = self._steps - step + 1
        advance = self._journal.progress("rollout", self._samples)
        self._sampler.on_sample = lambda: advance(self._sampler.generated - self._counted)
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
        rejected = self._experience.take_rejected()
        finished = [*groups, *rejected]
        self._scorer.check([result for group in finished for result in group.results])
        trajectories = [trajectory for group in groups for trajectory in group.trajectories]
        stale = {trajectory.oldest_version for trajectory in trajectories} - {NOT_SAMPLED, *versions}
        if stale:
            raise AssertionError(f"samples of weight versions {sorted(stale)}, expected {list(versions)}")
        self._journal.keep_samples(step, "train", groups)
        self._journal.keep_distributions(step, groups)
        metrics = {
            **_components(groups),
            **_metrics(groups),
            **(staleness_metrics(trajectories, versions) if self._stale else {}),
            "reward/failures": sum(result.failure is not None for group in finished for result in group.results),
            **self._counts(),
            "data/groups_dropped": len(rejected),
        }
        return Batch.from_trajectories(trajectories), metrics

    def _counts(self) -> dict[str, float]:
        """What was generated since the last step, or, when the run has gone on from a checkpoint, since then."""
        generated, self._counted = self._sampler.generated - self._counted, self._sampler.generated
        aborted, self._aborted = self._sampler.aborted - self._aborted, self._sampler.aborted
        return {"data/samples_generated": generated} | ({"data/samples_aborted": aborted} if self._stale else {})

    async def hold(self) -> None:
        """With `finish`, begin no more requests, and wait for those that run."""
        if self._finish:
            await self._sampler.drain()

    async def go_on(self) -> None:
        """Make requests again."""
        self._sampler.go_on()

    def sample_again(self) -> None:
        """Sample the groups anew that wait in a checkpoint of a run that allowed more staleness."""
        groups = self._experience.sample_again()
        self._sampler.sample_again(groups)
        if groups:
            self._journal.message(
                f"{len(groups)} finished groups are sampled again, as trainer.max_staleness is lower than it was"
            )

    async def release(self) -> None:
        """Use the slots of the groups that were trained on."""
        await self._experience.release()

    async def close(self) -> None:
        await self._experience.close()

    def state_dict(self) -> dict[str, Any]:
        waiting = self._experience.state_dict()
        waiting["finished"] = self._sampler.plain(waiting["finished"])
        return {"sampler": self._sampler.state_dict(), "experience": waiting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state["sampler"])
        waiting = dict(state["experience"])
        waiting["finished"] = self._sampler.from_plain(waiting["finished"])
        self._experience.load_state_dict(waiting)


class Examples:
    """Rows with their responses, in the order of the sampler.

    Args:
        examples: prompt and response tokens.
        rows_per_step: examples of a batch.
    """

    generates = False

    def __init__(self, examples: EncodedExamples, order: Order, rows_per_step: int) -> None:
        self._examples, self._order, self._per_step = examples, order, rows_per_step

    async def take(self, step: int, versions: Sequence[int]) -> tuple[Batch, dict[str, float]]:
        chosen = self._order.next(self._per_step)
        return example_batch(self._examples, chosen), {}

    async def hold(self) -> None:
        pass

    async def go_on(self) -> None:
        pass

    def sample_again(self) -> None:
        pass

    async def release(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.load_state_dict(state["order"])


class Preferences(Examples):
    """Pairs of a chosen and a rejected response, in the order of the sampler.

    A batch has the two of a pair one after the other; `pair_ids`, int64 `[S]`, is the same for both, which are then in
    one microbatch, and `chosen`, bool `[S]`, tells them apart.
    """

    def __init__(self, pairs: EncodedPreferences, order: Order, rows_per_step: int) -> None:
        super().__init__(pairs, order, rows_per_step)
        self._pairs = pairs

    async def take(self, step: int, versions: Sequence[int]) -> tuple[Batch, dict[str, float]]:
        chosen = self._order.next(self._per_step)
        return pair_batch(self._pairs, chosen), {}


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
    of_groups = [[one.reward for one in group.trajectories if one.status != "failed"] for group in groups]
    equal = [len(set(rewards)) == 1 for rewards in of_groups if len(rewards) > 1]
    return {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std(correction=0)),
        **({"reward/equal_groups": fmean(equal)} if equal else {}),
        "rollout/response_length_mean": fmean(int(trajectory.sampled.sum()) for trajectory in trajectories),
        "rollout/truncated_fraction": fmean(reason == "length" for reason in reasons),
    }
