"""The slots between sampler and trainer keep their bound, lose nothing and take nothing twice."""

import asyncio
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pentad.data.rows import PromptRow
from pentad.loops.experience import Experience
from pentad.loops.group import Group


def make_group(number: int) -> Group:
    return Group(PromptRow(id=str(number), prompt=str(number)), torch.tensor([number]), (), (), ())


def number_of(group: Group) -> int:
    return int(group.prompt[0])


@dataclass
class World:
    """Samples groups after random waits, and remembers with which version each was begun."""

    seed: int
    version: int = 0
    charged: int = 0
    most_charged: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.begun: dict[int, int] = {}
        self.admitted: list[int] = []

    async def sample(self, number: int) -> Group:
        assert number not in self.begun, "a group was sampled twice"
        self.begun[number] = self.version
        self.charged += 1
        self.most_charged = max(self.most_charged, self.charged)
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)
        return make_group(number)

    def admit(self, group: Group) -> bool:
        admitted = self.random.random() < 0.8
        if not admitted:
            self.charged -= 1
        return admitted


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), per_step=st.integers(1, 5), staleness=st.integers(0, 3), steps=st.integers(1, 8))
def test_bound_holds_and_nothing_is_lost_or_taken_twice(seed, per_step, staleness, steps):
    async def run() -> None:
        world = World(seed)
        experience = Experience(world.sample, world.admit, per_step, staleness)
        taken: list[int] = []
        for _ in range(steps):
            groups = await asyncio.wait_for(experience.take(), 10)
            assert len(groups) == per_step
            numbers = [number_of(group) for group in groups]
            assert numbers == sorted(numbers)
            for number in numbers:
                assert world.version - world.begun[number] <= staleness, "a group is too old"
            taken += numbers
            for _ in range(world.random.randrange(4)):  # training
                await asyncio.sleep(0)
            world.version += 1
            world.charged -= per_step
            await experience.release()
        await experience.close()
        assert len(set(taken)) == len(taken), "a group was taken twice"
        assert world.most_charged <= (staleness + 1) * per_step
        waiting = set(experience.state_dict()["finished"])
        assert set(taken) | waiting <= set(world.begun)

    asyncio.run(run())


def test_synchronous_training_samples_nothing_between_take_and_the_next_take():
    async def run() -> None:
        begun: list[int] = []

        async def sample(number: int) -> Group:
            begun.append(number)
            return make_group(number)

        experience = Experience(sample, lambda group: True, groups_per_step=3)
        assert [number_of(group) for group in await experience.take()] == [0, 1, 2]
        await asyncio.sleep(0)
        await experience.release()
        await asyncio.sleep(0)
        assert begun == [0, 1, 2]
        await experience.take()
        assert begun == [0, 1, 2, 3, 4, 5]

    asyncio.run(run())


def test_take_needs_release():
    async def run() -> None:
        async def sample(number: int) -> Group:
            return make_group(number)

        experience = Experience(sample, lambda group: True, groups_per_step=1)
        await experience.take()
        with pytest.raises(RuntimeError, match="release"):
            await experience.take()

    asyncio.run(run())


def test_a_failure_ends_the_step_and_cancels_the_rest():
    async def run() -> None:
        cancelled: list[int] = []

        async def sample(number: int) -> Group:
            if number == 1:
                raise ValueError("no engine")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
            return make_group(number)

        experience = Experience(sample, lambda group: True, groups_per_step=3)
        with pytest.raises(ValueError, match="no engine"):
            await experience.take()
        assert sorted(cancelled) == [0, 2]

    asyncio.run(run())


class BrokenEngine(Exception):
    pass


class Lives:
    """A run over several processes, each of which goes on from the last boundary of the one before."""

    def __init__(self, seed: int, per_step: int, staleness: int, steps: int) -> None:
        self.chance = random.Random(seed)
        self.per_step, self.staleness, self.steps = per_step, staleness, steps
        self.trained: list[int] = []
        self.rejected: set[int] = set()
        # The version that the last try of each number began under.
        self.begun: dict[int, int] = {}
        self.version, self.charged = 0, 0
        self.boundary: dict | None = None

    async def ticks(self, most: int) -> None:
        for _ in range(self.chance.randrange(most)):
            await asyncio.sleep(0)

    async def sample(self, number: int) -> Group:
        assert number not in self.trained and number not in self.rejected, "a group was sampled again"
        self.begun[number] = self.version
        self.charged += 1
        assert self.charged <= (self.staleness + 1) * self.per_step
        await self.ticks(8)
        if self.chance.random() < 0.01:
            raise BrokenEngine
        return make_group(number)

    def admit(self, group: Group) -> bool:
        admitted = self.chance.random() < 0.85
        self.charged -= not admitted
        return admitted

    async def live(self) -> bool:
        """One process; returns whether the run is done."""
        experience = Experience(self.sample, self.admit, self.per_step, self.staleness)
        self.charged = 0
        if self.boundary is not None:
            experience.load_state_dict(self.boundary)
            self.charged = len(self.boundary["finished"])
        left = self.steps - len(self.trained) // self.per_step
        while left:
            experience.steps_left = left
            try:
                groups = await asyncio.wait_for(experience.take(), 20)
            except BrokenEngine:
                return False
            if not await self.train(experience, [number_of(group) for group in groups]):
                return False
            left -= 1
        await asyncio.sleep(0)
        assert self.charged == 0, "groups were begun that nobody takes"
        await experience.close()
        return True

    async def train(self, experience: Experience, numbers: list[int]) -> bool:
        """One step, during which groups finish and others begin; returns False where it is killed before its end."""
        assert len(numbers) == self.per_step
        for number in numbers:
            assert self.version - self.begun[number] <= self.staleness, "a group is too old"
        await self.ticks(6)
        if self.chance.random() < 0.05:
            await experience.close()
            return False
        self.version += 1
        await self.ticks(3)  # between publication and release
        self.charged -= self.per_step
        await experience.release()
        self.trained.extend(numbers)
        self.rejected.update(number_of(group) for group in experience.take_rejected())
        self.boundary = experience.state_dict()
        return True


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), per_step=st.integers(1, 4), staleness=st.integers(0, 4), steps=st.integers(1, 10))
def test_runs_that_fail_and_go_on_keep_the_bound_and_train_each_group_once(seed, per_step, staleness, steps):
    """Random waits, groups that are not admitted, failures, stops in the middle, and resumes from the last boundary."""
    lives = Lives(seed, per_step, staleness, steps)
    for _ in range(500):
        if asyncio.run(lives.live()):
            break
    assert len(lives.trained) == len(set(lives.trained)) == steps * per_step
    assert not lives.rejected & set(lives.trained)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), before=st.integers(1, 4))
def test_a_resumed_run_takes_every_group_once(seed, before):
    """A checkpoint while groups wait and run: the next process samples the running ones again, and no finished one."""

    async def first() -> tuple[list[int], dict]:
        world = World(seed)
        experience = Experience(world.sample, lambda group: True, 2, max_staleness=2)
        taken: list[int] = []
        for _ in range(before):
            taken += [number_of(group) for group in await experience.take()]
            await experience.release()
        state = experience.state_dict()
        await experience.close()
        return taken, state

    async def second(state: dict) -> list[int]:
        world = World(seed + 1)
        experience = Experience(world.sample, lambda group: True, 2, max_staleness=2)
        experience.load_state_dict(state)
        taken: list[int] = []
        for _ in range(6):
            taken += [number_of(group) for group in await experience.take()]
            await experience.release()
        await experience.close()
        assert not set(world.begun) & set(state["finished"])
        return taken

    taken, state = asyncio.run(first())
    taken += asyncio.run(second(state))
    assert len(taken) == len(set(taken))
    # Nothing below the last number that all are past was left out.
    assert set(range(len(taken) - 6)) <= set(taken)


def test_a_run_whose_groups_are_never_admitted_ends():
    async def run() -> None:
        async def sample(number: int) -> Group:
            await asyncio.sleep(0)
            return make_group(number)

        def end(groups: list[Group]) -> None:
            raise ValueError(f"none of {len(groups)}")

        experience = Experience(sample, lambda group: False, groups_per_step=3, on_none_admitted=end)
        with pytest.raises(ValueError, match="none of 60"):
            await asyncio.wait_for(experience.take(), 60)

    asyncio.run(run())


def test_groups_that_were_not_admitted_are_told():
    async def run() -> None:
        async def sample(number: int) -> Group:
            return make_group(number)

        experience = Experience(sample, lambda group: number_of(group) % 2 == 0, groups_per_step=2)
        assert [number_of(group) for group in await experience.take()] == [0, 2]
        assert [number_of(group) for group in experience.take_rejected()] == [1]
        await experience.release()
        await experience.take()
        assert all(number_of(group) > 2 for group in experience.take_rejected())

    asyncio.run(run())
