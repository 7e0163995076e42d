"""The loop over plain objects: what is called when, on which batch, by which role."""

import asyncio
from dataclasses import replace

import pytest
import torch
from loop_world import PER_STEP, SAMPLES, Events, Journal, Model, World

from pentad.algorithms.make import make_algorithm
from pentad.config.schema.algorithms import DPOSettings, GRPOSettings, PPOSettings, SFTSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.data.preferences import EncodedPreferences
from pentad.data.prompts import EncodedExamples
from pentad.data.rows import PromptRow
from pentad.data.sampler import PromptSampler
from pentad.errors import UserError
from pentad.loops.drift import DriftWatch
from pentad.loops.loop import Loop, Parts
from pentad.loops.sources import Examples, Preferences
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest
from pentad.weights.proof import SyncError


def test_old_logprobs_are_of_the_whole_batch_before_its_first_optimizer_step():
    world = World(GRPOSettings(optimizer_steps=3), steps=2)
    world.run()
    one_step = ["sleep", "score policy", *["train policy"] * 3]
    assert world.events == ["publish 0", *one_step, "publish 3", *one_step, "publish 6"]
    for number, scored in enumerate(world.policy.scored):
        parts = world.policy.trained[3 * number : 3 * number + 3]
        assert scored.num_sequences == sum(part.num_sequences for part in parts)
        # The policy as it was before the first of the three steps, in all of them.
        for part in parts:
            old = part.per_token["old_logprobs"][part.loss_mask]
            assert torch.equal(old, torch.full_like(old, -0.5 - 0.125 * 3 * number))


def test_reference_logprobs_are_the_references():
    world = World(GRPOSettings(kl_coef=0.1, optimizer_steps=2), steps=1)
    world.run()
    assert world.events.count("score reference") == 1
    for part in world.policy.trained:
        reference = part.per_token["ref_logprobs"][part.loss_mask]
        assert torch.equal(reference, torch.full_like(reference, -0.75))


def test_no_column_that_is_not_read_is_computed():
    world = World(GRPOSettings(), steps=1)
    world.run()
    assert "score reference" not in world.events


def test_every_sample_is_trained_once_with_its_groups_advantage():
    world = World(GRPOSettings(advantage_std=False), steps=2)
    world.run()
    ids = [int(i) for part in world.policy.trained for i in part.sample_ids]
    assert ids == list(range(2 * PER_STEP * SAMPLES))
    assert len({(r.request_id, r.sample) for r in world.engine.requests}) == len(ids), "requests share random numbers"
    for part in world.policy.trained:
        # Rewards are the lengths 1 to 4 in every group; their mean is 2.5.
        for sequence, advantages in enumerate(part.per_token["advantages"].split(part.lengths)):
            expected = sequence % SAMPLES + 1 - 2.5
            assert advantages.tolist() == [0.0, 0.0] + [expected] * (sequence % SAMPLES + 1)


@pytest.mark.parametrize("on_failure", ["drop", "zero"])
def test_failed_rewards_are_left_out_or_score_zero(on_failure):
    world = World(GRPOSettings(advantage_std=False), steps=1, failing=3, on_failure=on_failure)
    world.run()
    (part,) = world.policy.trained
    mean = 2.0 if on_failure == "drop" else 1.5  # of 1, 2, 3, and 0 where the failed sample counts
    for sequence, (advantages, mask) in enumerate(
        zip(part.per_token["advantages"].split(part.lengths), part.loss_mask.split(part.lengths), strict=True)
    ):
        if sequence % SAMPLES == 3:
            assert bool(mask.any()) is (on_failure == "zero")
            assert advantages[-1] == (0.0 if on_failure == "drop" else -1.5)
        else:
            assert advantages[-1] == pytest.approx(sequence % SAMPLES + 1 - mean)
    (_, metrics) = world.journal.written[0]
    assert metrics["reward/failures"] == PER_STEP
    assert metrics["reward/mean"] == pytest.approx(mean)
    left_out = PER_STEP if on_failure == "drop" else 0
    assert metrics["data/samples_generated"] == PER_STEP * SAMPLES
    assert metrics["data/samples_left_out"] == left_out
    assert metrics["data/samples_consumed"] == PER_STEP * SAMPLES - left_out


def test_an_optimizer_step_without_a_trained_token_is_not_taken():
    """Of six prompts in two steps, all samples of one fail; each group has an optimizer step of its own."""
    world = World(GRPOSettings(optimizer_steps=3), steps=2, failing_row="2")
    world.run()
    assert len(world.policy.trained) == 5
    assert all(part.loss_mask.any() for part in world.policy.trained)
    assert world.loop.version == 5
    left_out = [metrics["data/samples_left_out"] for _, metrics in world.journal.written]
    assert sorted(left_out) == [0, SAMPLES]


def test_engines_that_slept_get_weights_after_a_step_that_trained_nothing():
    world = World(GRPOSettings(), steps=2)
    credit = world.loop._parts.algorithm.credit

    def nothing(batch):
        return replace(credit(batch), loss_mask=torch.zeros_like(batch.loss_mask))

    world.loop._parts.algorithm.credit = nothing  # ty: ignore
    world.run()
    assert world.events == ["publish 0", *["sleep", "score policy", "publish 0"] * 2]


def test_a_loss_that_reads_what_the_batch_has_not_is_refused():
    world = World(GRPOSettings(), steps=1)
    world.loop._parts.algorithm.credit = lambda batch: batch  # ty: ignore
    with pytest.raises(UserError, match="its loss reads advantages"):
        world.run()


def test_samples_of_other_weights_end_the_run():
    world = World(GRPOSettings(), steps=2)
    generate = world.engine.generate

    async def stale(request: GenerateRequest) -> Completion:
        world.engine.version -= request.request_id.startswith("2-1")
        try:
            return await generate(request)
        finally:
            world.engine.version += request.request_id.startswith("2-1")

    world.engine.generate = stale  # ty: ignore
    with pytest.raises(AssertionError, match="weight versions"):
        world.run()


def test_a_resumed_loop_goes_on_where_the_first_one_stood():
    whole = World(GRPOSettings(), steps=4)
    whole.run()
    first = World(GRPOSettings(), steps=2)
    first.run()
    second = World(GRPOSettings(), steps=4)
    second.loop.load_state_dict(first.loop.state_dict())
    second.run()
    straight = [request.prompt_tokens.tolist() for request in whole.engine.requests]
    resumed = [request.prompt_tokens.tolist() for request in first.engine.requests + second.engine.requests]
    assert straight == resumed
    assert [r.request_id for r in whole.engine.requests] == [
        r.request_id for r in first.engine.requests + second.engine.requests
    ]
    assert second.loop.version == 4 and [step for step, _ in second.journal.written] == [3, 4]


def test_examples_need_neither_engines_nor_publication():
    events = Events()
    policy = Model("policy", 0.0, events)
    rows = tuple(PromptRow(id=str(i), prompt=str(i)) for i in range(5))
    pairs = tuple((torch.tensor([i]), torch.tensor([i, i])) for i in range(5))
    examples = EncodedExamples(rows, pairs, 0)
    settings = SFTSettings()
    loop = Loop(
        Parts(
            settings=TrainerSettings(total_steps=3, prompts_per_step=2),
            algorithm_settings=settings,
            algorithm=make_algorithm(settings),
            roles={"policy": policy},
            source=Examples(examples, PromptSampler(examples, seed=0), 2),
            journal=Journal(),  # ty: ignore
            engines=None,
            publication=None,
            evaluation=None,
            temperature=1.0,
        )
    )
    asyncio.run(loop.run())
    assert events == ["train policy"] * 3
    firsts = [int(part.tokens[start]) for part in policy.trained for start in part.cu_seqlens[:-1]]
    assert len(set(firsts[:5])) == 5, "a row was trained on twice before the epoch ended"


def test_pairs_are_trained_on_with_the_reference_and_together():
    events = Events()
    policy, reference = Model("policy", 0.0, events), Model("reference", -1.0, events)
    rows = tuple(PromptRow(id=str(i), prompt=str(i)) for i in range(5))
    examples = tuple((torch.tensor([i]), torch.tensor([i] * (1 + which))) for i in range(5) for which in (0, 1))
    pairs, settings = EncodedPreferences(rows, examples, 0), DPOSettings()
    loop = Loop(
        Parts(
            settings=TrainerSettings(total_steps=2, prompts_per_step=2),
            algorithm_settings=settings,
            algorithm=make_algorithm(settings),
            roles={"policy": policy, "reference": reference},
            source=Preferences(pairs, PromptSampler(pairs, seed=0), 2),
            journal=Journal(),  # ty: ignore
            engines=None,
            publication=None,
            evaluation=None,
            temperature=1.0,
        )
    )
    asyncio.run(loop.run())
    assert events == ["score reference", "train policy"] * 2
    seen = []
    for batch in policy.trained:
        columns, firsts = batch.per_sequence, batch.tokens[batch.cu_seqlens[:-1].long()].tolist()
        assert columns["pair_ids"].tolist() == [0, 0, 1, 1] and columns["chosen"].tolist() == [True, False] * 2
        assert batch.lengths == [2, 3, 2, 3] and firsts[::2] == firsts[1::2]
        seen += firsts[::2]
    assert len(set(seen)) == 4


def test_a_batch_is_refused_before_it_is_trained_on_where_engine_and_trainer_differ():
    world = World(GRPOSettings(), steps=2)
    told: list[str] = []
    world.loop._parts.drift_watch = DriftWatch(torch.bfloat16, 1.0, told.append)
    with pytest.raises(SyncError, match=r"divergence 0.149 nats a token \(rollout/kl\)"):  # -1 and -0.5
        world.run()
    assert "train policy" not in world.events
    assert told == []
    near = World(GRPOSettings(), steps=1)
    near.loop._parts.drift_watch = DriftWatch(torch.bfloat16, 1.0, told.append)
    near.policy.value = -1.2
    near.run()
    assert "train policy" in near.events
    assert len(told) == 1 and "rollout/kl is 0.0187" in told[0]
    assert near.loop.state_dict()["drift"]["told"] == ["large"]


class Meeting(Model):
    """A model whose work is done when the others of its barrier have begun theirs."""

    barrier: asyncio.Barrier

    async def values(self, batch, progress):
        await self.meet()
        return await super().values(batch, progress)

    async def logprobs(self, batch, temperature, progress):
        await self.meet()
        return await super().logprobs(batch, temperature, progress)

    async def train(self, minibatch, loss, temperature, progress):
        await self.meet()
        return await super().train(minibatch, loss, temperature, progress)

    async def meet(self):
        await asyncio.wait_for(self.barrier.wait(), 5)


def test_models_apart_work_at_the_same_time_and_those_together_take_turns():
    world = World(PPOSettings(kl_coef=0.1, optimizer_steps=2), steps=1, model=Meeting)
    barrier = asyncio.Barrier(2)
    for model in (world.policy, world.critic):
        model.barrier = barrier
    world.reference.barrier = asyncio.Barrier(1)
    world.parts.devices = {"policy": 0, "reference": 0, "critic": 1}
    world.run()
    assert world.events.index("score policy") < world.events.index("score reference")
    assert world.events.count("train policy") == world.events.count("train critic") == 2
    assert world.loop.version == 2


def test_a_failure_of_one_model_ends_the_wait_for_those_that_are_apart():
    class Failing(Model):
        left = False

        async def values(self, batch, progress):
            raise RuntimeError("no values")

        async def logprobs(self, batch, temperature, progress):
            try:
                await asyncio.Event().wait()
            finally:
                self.left = True

    world = World(PPOSettings(), steps=1, model=Failing)
    world.parts.devices = {"critic": 1}
    with pytest.raises(RuntimeError, match="no values"):
        world.run()
    assert world.policy.left
