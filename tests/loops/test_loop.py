"""The loop over plain objects: what is called when, on which batch, by which role."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pentad.algorithms.make import make_algorithm
from pentad.config.schema.algorithms import AlgorithmSettings, GRPOSettings, SFTSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.data.prompts import EncodedExamples, EncodedPrompts
from pentad.data.rows import PromptRow
from pentad.data.sampler import PromptSampler
from pentad.errors import UserError
from pentad.loops.drift import DriftWatch
from pentad.loops.experience import Experience
from pentad.loops.loop import Loop, Parts
from pentad.loops.sampler import GroupSampler
from pentad.loops.sources import Examples, Rollouts
from pentad.rewards.types import RewardResult
from pentad.samples.batch import Batch
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.trainers.protocol import Trained
from pentad.weights.proof import SyncError

PROMPTS, SAMPLES, PER_STEP = 6, 4, 3


class Events(list[str]):
    """What happened, in order."""


class Model:
    """A role: gives every token a log-prob that tells who computed it, and when."""

    def __init__(self, name: str, value: float, events: Events) -> None:
        self.name, self.value, self.events = name, value, events
        self.scored: list[Batch] = []
        self.trained: list[Batch] = []

    async def logprobs(self, batch: Batch, temperature: float, progress: Any) -> Tensor:
        self.events.append(f"score {self.name}")
        self.scored.append(batch)
        # After each optimizer step the policy is another one.
        return (self.value - 0.125 * len(self.trained)) * batch.loss_mask

    async def train(self, minibatch: Batch, loss: Any, temperature: float, progress: Any) -> Trained:
        self.events.append(f"train {self.name}")
        self.trained.append(minibatch)
        return Trained({"train/loss": 0.0, "train/lr": 0.1}, tuple(minibatch.sample_ids.tolist()))


class Engine:
    """Samples the number of the request's sample, as often as that says."""

    def __init__(self, events: Events) -> None:
        self.events, self.version = events, -1
        self.requests: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> Completion:
        self.requests.append(request)
        length = request.sample + 1
        return Completion(
            response_tokens=torch.full((length,), request.sample),
            response_logprobs=torch.full((length,), -1.0),
            versions=torch.full((length,), self.version, dtype=torch.int32),
            finish_reason="stop",
        )

    async def sleep(self) -> None:
        self.events.append("sleep")


class Scorer:
    """Rewards the length of a response; a sample of `failing` fails."""

    def __init__(self, failing: int | None = None, failing_row: str = "") -> None:
        self.failing, self.failing_row = failing, failing_row

    async def score(self, row: PromptRow, responses: list[Tensor]) -> list[RewardResult]:
        return [
            RewardResult(0.0, failure="error", message="no")
            if sample == self.failing or row.id == self.failing_row
            else RewardResult(float(len(r)))
            for sample, r in enumerate(responses)
        ]

    def check(self, results: list[RewardResult]) -> None:
        pass


class Publication:
    def __init__(self, engine: Engine, events: Events) -> None:
        self.engine, self.events = engine, events

    async def bring(self, version: int) -> None:
        if self.engine.version != version:
            self.events.append(f"publish {version}")
            self.engine.version = version


class Journal:
    """Keeps metrics."""

    def __init__(self) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.status = type("Status", (), {"phase": "", "step": 0})()

    def progress(self, name: str, total: int | None = None) -> Any:
        return lambda done: None

    def timed(self, phase: str) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def times(self) -> dict[str, float]:
        return {"time/step": 1.0}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.written.append((step, dict(metrics)))

    def keep_samples(self, *arguments: Any) -> None:
        pass


class World:
    """A loop and everything around it."""

    def __init__(
        self,
        algorithm: AlgorithmSettings,
        steps: int,
        *,
        failing: int | None = None,
        failing_row: str = "",
        on_failure: str = "drop",
    ) -> None:
        self.events = Events()
        self.policy, self.reference = Model("policy", -0.5, self.events), Model("reference", -0.75, self.events)
        self.engine, self.journal = Engine(self.events), Journal()
        rows = tuple(PromptRow(id=str(i), prompt=str(i)) for i in range(PROMPTS))
        prompts = EncodedPrompts(rows, tuple(torch.tensor([i, i]) for i in range(PROMPTS)), 0)
        scorer = Scorer(failing, failing_row)
        sampler = GroupSampler(
            prompts,
            PromptSampler(prompts, seed=0),
            self.engine,  # ty: ignore
            scorer,  # ty: ignore
            SamplingParams(),
            samples=SAMPLES,
            groups_per_step=PER_STEP,
            on_failure=on_failure,
        )
        experience = Experience(sampler.group, lambda group: True, PER_STEP)
        self.loop = Loop(
            Parts(
                settings=TrainerSettings(total_steps=steps, prompts_per_step=PER_STEP),
                algorithm_settings=algorithm,
                algorithm=make_algorithm(algorithm),
                roles={"policy": self.policy, "reference": self.reference},
                source=Rollouts(sampler, experience, scorer, self.journal, PER_STEP * SAMPLES),  # ty: ignore
                journal=self.journal,  # ty: ignore
                engines=self.engine,  # ty: ignore
                publication=Publication(self.engine, self.events),  # ty: ignore
                evaluation=None,
                temperature=1.0,
            )
        )

    def run(self) -> None:
        asyncio.run(self.loop.run())


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


ALGORITHM = """
import torch

from pentad.algorithms.protocol import Mean
from pentad.algorithms.reduction import spread_over_tokens


class Loss:
    reads = frozenset({"advantages"})
    differentiates_entropy = True

    def __init__(self, entropy):
        self.entropy = entropy

    def denominator(self, minibatch):
        return float(minibatch.loss_mask.sum())

    def __call__(self, outputs, microbatch):
        bonus = self.entropy * outputs.entropies
        loss = -(outputs.logprobs * microbatch.per_token["advantages"] + bonus) * microbatch.loss_mask
        return loss.sum(), {"train/bonus": Mean(bonus.detach().sum(), microbatch.loss_mask.sum())}


class Reinforce:
    columns = frozenset()

    def __init__(self, *, entropy=0.0, columns=()):
        self.loss = Loss(entropy)

    def admit(self, group):
        return len({trajectory.reward for trajectory in group}) > 1

    def credit(self, batch):
        rewards = batch.per_sequence["rewards"]
        return batch.with_per_token("advantages", spread_over_tokens(rewards - rewards.mean(), batch))

    def losses(self):
        return {"policy": self.loss}


class WrongColumns(Reinforce):
    columns = {"values"}


class WrongRoles(Reinforce):
    def losses(self):
        return {"critic": self.loss}
"""


def test_an_algorithm_of_the_users_needs_no_change_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pentad.config.schema.algorithms import CustomSettings

    (tmp_path / "reinforce_here.py").write_text(ALGORITHM)
    monkeypatch.chdir(tmp_path)
    settings = CustomSettings(name="reinforce_here.py:Reinforce", options={"entropy": 0.5})
    assert settings.columns == frozenset() and settings.roles == {"policy"}
    world = World(settings, steps=2)
    world.run()
    assert "score policy" not in world.events
    for part in world.policy.trained:
        assert part.per_token["advantages"][part.loss_mask].unique().tolist() == [-1.5, -0.5, 0.5, 1.5]


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"name": "reinforce_bad.py:Missing"}, "has no 'Missing'"),
        ({"name": "nowhere.py:Reinforce"}, "there is no file"),
        ({"options": {"entropi": 1}}, "could not be made with algorithm.options"),
        ({"name": "reinforce_bad.py:Loss"}, "has no method admit, credit, losses"),
        ({"name": "reinforce_bad.py:WrongColumns"}, "must be a set of some of old_logprobs, ref_logprobs"),
        ({"name": "reinforce_bad.py:WrongRoles"}, "not a mapping of the one role"),
    ],
)
def test_a_wrong_algorithm_is_refused_by_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change, cause):
    from pentad.config.schema.algorithms import CustomSettings

    (tmp_path / "reinforce_bad.py").write_text(ALGORITHM)
    monkeypatch.chdir(tmp_path)
    settings = CustomSettings(**{"name": "reinforce_bad.py:Reinforce", **change})
    with pytest.raises(UserError) as refused:
        make_algorithm(settings)
    assert cause in refused.value.cause


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
