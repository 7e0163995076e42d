"""The loop of group-relative policy optimisation.

Invariant: each sample that was generated is trained on exactly once, with the weights' version that generated it.
"""

import asyncio
from statistics import fmean

import torch

from pentad.algorithms.grpo import GRPOLoss, group_advantages, spread_over_tokens
from pentad.data.prompts import EncodedPrompts
from pentad.data.rows import PromptRow
from pentad.data.sampler import PromptSampler
from pentad.loops.session import Session
from pentad.record.metrics import merge
from pentad.rewards.types import RewardResult
from pentad.samples.batch import Batch, Completion
from pentad.samples.packing import split_minibatches
from pentad.samples.request import GenerateRequest, SamplingParams


def train_grpo(session: Session) -> None:
    """Rollout, reward, training and synchronisation, `trainer.total_steps` times."""
    settings = session.prepared.settings
    prompts = session.prepared.train
    assert isinstance(prompts, EncodedPrompts)
    sampler = PromptSampler(prompts, settings.experiment.seed, settings.data.shuffle)
    session.synchronize()
    if settings.trainer.val_before_train:
        session.evaluate(0)
    session.timer.metrics()  # what came before the first step is not part of it
    total = settings.trainer.total_steps
    for step in range(1, total + 1):
        session.status.step = step
        chosen = sampler.next(settings.trainer.prompts_per_step)
        rows, completions = rollout(session, prompts, chosen, step)
        session.progress("reward")
        with session.timer.phase("reward"):
            results = session.score(rows, completions)
        session.check_rewards(results)
        batch = make_batch(session, completions, results, step)
        session.log_samples(step, "train", rows, completions, results)
        metrics = train(session, batch)
        session.synchronize()
        metrics = merge(metrics, rollout_metrics(completions, results), session.timer.metrics())
        metrics["perf/tokens_per_s"] = batch.num_tokens / metrics["time/step"]
        session.sinks.write(step, metrics)
        every = settings.trainer.test_freq
        if session.prepared.eval and (step == total or (every and step % every == 0)):
            session.evaluate(step)
            session.timer.metrics()


def rollout(
    session: Session, prompts: EncodedPrompts, chosen: list[int], step: int
) -> tuple[list[PromptRow], list[Completion]]:
    """`rollout.n` completions of each chosen prompt, and the row that each answers."""
    settings = session.prepared.settings.rollout
    params = SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_response_tokens,
        stop=tuple(settings.stop),
        n=settings.n,
    )
    requests = [GenerateRequest(prompts.tokens[index], f"{step}-{place}", params) for place, index in enumerate(chosen)]
    with session.timer.phase("rollout"):
        groups = session.generate(requests, "rollout")
    rows = [prompts.rows[index] for index in chosen for _ in range(settings.n)]
    return rows, [completion for group in groups for completion in group]


def make_batch(session: Session, completions: list[Completion], results: list[RewardResult], step: int) -> Batch:
    """The training batch, with advantages."""
    settings = session.prepared.settings
    stale = {completion.weight_version for completion in completions} - {session.version}
    if stale:
        raise AssertionError(f"completions of weight versions {sorted(stale)}, expected {session.version}")
    count = len(completions)
    first = (step - 1) * count
    batch = Batch.from_completions(
        completions,
        sample_ids=range(first, first + count),
        group_ids=[index // settings.rollout.n for index in range(count)],
        rewards=[result.score for result in results],
    )
    advantages = group_advantages(
        batch.per_sequence["rewards"],
        batch.per_sequence["group_ids"],
        divide_by_std=settings.algorithm.advantage_std,
    )
    return batch.with_per_token("advantages", spread_over_tokens(advantages, batch))


def train(session: Session, batch: Batch) -> dict[str, float]:
    """Old and reference log-probs, then `algorithm.optimizer_steps` updates."""
    settings = session.prepared.settings
    policy, temperature = session.policy, settings.rollout.temperature
    with session.timer.phase("train"):
        if session.engines is not None:
            asyncio.run(session.engines.sleep())
        old = asyncio.run(policy.logprobs(batch, temperature, session.progress("log-probs")))
        batch = batch.with_per_token("old_logprobs", old)
        if session.reference is not None:
            progress = session.progress("reference log-probs")
            reference = asyncio.run(session.reference.logprobs(batch, temperature, progress))
            batch = batch.with_per_token("ref_logprobs", reference)
        loss = GRPOLoss(settings.algorithm)
        groups = batch.per_sequence["group_ids"].tolist()
        steps, consumed = [], 0
        for part in split_minibatches(batch.num_sequences, settings.algorithm.optimizer_steps, groups):
            minibatch = batch.select(part)
            progress = session.progress("training")
            trained = asyncio.run(policy.train(minibatch, loss, temperature, progress))
            steps.append(trained.metrics)
            consumed += len(trained.sample_ids)
            session.version += 1
    metrics = {name: fmean(step[name] for step in steps) for name in steps[0]}
    metrics["train/lr"] = steps[-1]["train/lr"]
    difference = (batch.per_token["rollout_logprobs"] - old)[batch.loss_mask].abs()
    metrics["rollout/logprob_diff_max"] = float(difference.max())
    metrics["rollout/logprob_diff_mean"] = float(difference.mean())
    metrics["data/samples_consumed"] = consumed
    return metrics


def rollout_metrics(completions: list[Completion], results: list[RewardResult]) -> dict[str, float]:
    """What the completions and their rewards look like."""
    scores = torch.tensor([result.score for result in results])
    return {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std(correction=0)),
        "reward/failures": sum(result.failure is not None for result in results),
        "rollout/response_length_mean": fmean(len(completion.response_tokens) for completion in completions),
        "rollout/truncated_fraction": fmean(completion.finish_reason == "length" for completion in completions),
        "data/samples_generated": len(completions),
    }
