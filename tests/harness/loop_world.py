"""A loop over plain objects, which note what is called when, on which batch, by which role."""

import asyncio
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pentad.algorithms.make import make_algorithm
from pentad.config.schema.algorithms import AlgorithmSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.data.prompts import EncodedPrompts
from pentad.data.rows import PromptRow
from pentad.data.sampler import PromptSampler
from pentad.loops.experience import Experience
from pentad.loops.loop import Loop, Parts
from pentad.loops.sampler import GroupSampler
from pentad.loops.sources import Rollouts
from pentad.rewards.types import RewardResult
from pentad.run.assemble import importance_of
from pentad.samples.batch import Batch
from pentad.samples.completion import Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.trainers.protocol import Trained

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

    async def values(self, batch: Batch, progress: Any) -> Tensor:
        self.events.append(f"value {self.name}")
        self.scored.append(batch)
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

    async def bring(self, version: int, *, asleep: bool = False) -> None:
        if self.engine.version != version or asleep:
            self.events.append(f"publish {version}")
            self.engine.version = version


class Journal:
    """Keeps metrics."""

    def __init__(self) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.messages: list[str] = []
        self.status = type("Status", (), {"phase": "", "step": 0})()

    def progress(self, name: str, total: int | None = None) -> Any:
        return lambda done: None

    def timed(self, phase: str) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def times(self) -> dict[str, float]:
        return {"time/step": 1.0}

    def between(self) -> None:
        pass

    def message(self, text: str) -> None:
        self.messages.append(text)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.written.append((step, dict(metrics)))

    def keep_samples(self, *arguments: Any) -> None:
        pass

    def keep_distributions(self, *arguments: Any) -> None:
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
        max_staleness: int = 0,
        finish: bool = False,
        engine: type[Engine] = Engine,
        model: type[Model] = Model,
        critic_warmup: int = 0,
    ) -> None:
        self.events = Events()
        self.policy, self.reference = model("policy", -0.5, self.events), model("reference", -0.75, self.events)
        self.critic = model("critic", 0.25, self.events)
        self.engine, self.journal = engine(self.events), Journal()
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
        experience = Experience(sampler.group, lambda group: True, PER_STEP, max_staleness)
        source = Rollouts(
            sampler,
            experience,
            scorer,  # ty: ignore
            self.journal,  # ty: ignore
            PER_STEP * SAMPLES,
            steps=steps,
            finish=finish,
            stale=max_staleness > 0,
        )
        self.parts = Parts(
            settings=TrainerSettings(total_steps=steps, prompts_per_step=PER_STEP, max_staleness=max_staleness),
            algorithm_settings=algorithm,
            algorithm=make_algorithm(algorithm),
            roles={"policy": self.policy, "reference": self.reference, "critic": self.critic},
            source=source,
            journal=self.journal,  # ty: ignore
            engines=self.engine,  # ty: ignore
            publication=Publication(self.engine, self.events),  # ty: ignore
            evaluation=None,
            temperature=1.0,
            max_staleness=max_staleness,
            correction=importance_of(algorithm, max_staleness),
            critic_warmup=critic_warmup,
        )
        self.loop = Loop(self.parts)

    def run(self) -> None:
        asyncio.run(self.loop.run())
