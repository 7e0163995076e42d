"""The parts of a loop from what was prepared and started.

Invariant: what the settings ask for is there, and nothing else: no engines where nothing is generated, no reference
where no column needs it.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import cast

import torch

from pentad.algorithms.protocol import Algorithm
from pentad.config.schema.algorithms.base import AlgorithmSettings, Role, RolloutAlgorithmSettings
from pentad.config.schema.algorithms.correction import CorrectionSettings
from pentad.data.mixture import make_order
from pentad.data.preferences import EncodedPreferences
from pentad.data.prompts import EncodedExamples, EncodedPrompts
from pentad.errors import UserError
from pentad.loops.drift import DriftWatch
from pentad.loops.evaluation import Evaluation
from pentad.loops.experience import Experience
from pentad.loops.group import Group
from pentad.loops.held_out import HeldOut
from pentad.loops.journal import Journal
from pentad.loops.loop import Parts
from pentad.loops.probe import Probe, probe_sequences
from pentad.loops.publication import Publication
from pentad.loops.roles import Engines, Policy, Trainer
from pentad.loops.sampler import GroupSampler
from pentad.loops.scoring import Scorer
from pentad.loops.sources import Examples, Preferences, Rollouts, Source
from pentad.loops.watch import LearningWatch
from pentad.record.phases import REWARDS
from pentad.rewards.pools import RewardPools
from pentad.run.evaluations import Scorers, evaluation_sets, shared_evenly
from pentad.run.prepare import Prepared
from pentad.samples.request import SamplingParams


def assemble(
    prepared: Prepared,
    policy: Trainer,
    roles: Mapping[Role, Trainer],
    engines: Engines | None,
    rewards: RewardPools | None,
    journal: Journal,
    dtype: torch.dtype,
    stack: ExitStack,
) -> Parts:
    """The parts of the loop.

    Args:
        policy: the model that is trained; it publishes, where there are engines.
        roles: all models, the policy among them.
        dtype: the coarser of the trainer's and the engines'.
        stack: closes what is made here.
    """
    settings = prepared.settings
    algorithm = prepared.algorithm
    working = partial(journal.timeline.span, [REWARDS], "rewards")
    scorers = Scorers(rewards, prepared.tokenizer, journal.tell_failure, stack, working)
    publication = evaluation = drift_watch = None
    if prepared.eval or prepared.held_out:
        sets = evaluation_sets(prepared.eval, settings, scorers)
        # Pairs are scored by the reference, too, which may have ranks of its own.
        evenly = math.lcm(*(shared_evenly(home.layout) for home in prepared.allocation.homes(roles)))
        held_out = HeldOut(prepared.held_out, roles, evenly) if prepared.held_out else None
        evaluation = Evaluation(sets, engines, journal, held_out)
    if engines is not None:
        drift_watch = DriftWatch(dtype, settings.rollout.temperature, partial(_warn_of_drift, journal))
        publication = _publication(prepared, cast(Policy, policy), engines, journal, dtype)
    return Parts(
        settings=settings.trainer,
        algorithm_settings=settings.algorithm,
        algorithm=algorithm,
        roles=roles,
        devices={role: prepared.allocation.home(role) for role in roles},
        source=_source(prepared, algorithm, engines, scorers.common, journal),
        journal=journal,
        engines=engines,
        publication=publication,
        evaluation=evaluation,
        max_staleness=settings.trainer.max_staleness,
        correction=importance_of(settings.algorithm, settings.trainer.max_staleness),
        drift_watch=drift_watch,
        learning_watch=LearningWatch(settings),
        critic_warmup=settings.critic_warmup,
        temperature=settings.rollout.temperature if settings.algorithm.trains_on == "rollouts" else 1.0,
    )


def _warn_of_drift(journal: Journal, text: str) -> None:
    journal.warn(journal.status.step, "drift", text)


def _source(
    prepared: Prepared, algorithm: Algorithm, engines: Engines | None, scorer: Scorer | None, journal: Journal
) -> Source:
    settings, data = prepared.settings, prepared.train
    order = make_order(data.rows, settings.experiment.seed, settings.data)
    per_step = settings.trainer.prompts_per_step
    if isinstance(data, EncodedPreferences):
        return Preferences(data, order, per_step)
    if isinstance(data, EncodedExamples):
        return Examples(data, order, per_step)
    if engines is None or scorer is None:
        raise RuntimeError("rollouts need engines and rewards")
    rollout = settings.rollout
    sampler = GroupSampler(
        data,
        order,
        engines,
        scorer,
        SamplingParams(
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_tokens=rollout.max_response_tokens,
            stop=tuple(rollout.stop),
        ),
        samples=rollout.n,
        groups_per_step=per_step,
        on_failure=settings.reward.on_failure,
    )
    experience = Experience(
        sampler.group,
        lambda group: algorithm.admit(group.trajectories),
        per_step,
        settings.trainer.max_staleness,
        on_none_admitted=lambda groups: _end_without_groups(groups, scorer, settings.algorithm.name),
    )
    return Rollouts(
        sampler,
        experience,
        scorer,
        journal,
        per_step * rollout.n,
        steps=settings.trainer.total_steps,
        finish=rollout.on_update == "finish",
        stale=settings.trainer.max_staleness > 0,
    )


def importance_of(algorithm: AlgorithmSettings, max_staleness: int) -> CorrectionSettings | None:
    """The importance weights that a run computes; None: none."""
    if not isinstance(algorithm, RolloutAlgorithmSettings):
        return None
    asked, computed = algorithm.correction, algorithm.columns - algorithm.sampled_columns
    if "old_logprobs" not in computed or asked.level == "none":
        return None
    if asked.level == "auto":
        return asked.model_copy(update={"level": "token"}) if max_staleness else None
    return asked


def _end_without_groups(groups: list[Group], scorer: Scorer, algorithm: str) -> None:
    """End a run that samples and trains on nothing.

    Raises:
        UserError: with what is wrong with the groups.
    """
    scorer.check([result for group in groups for result in group.results])
    raise UserError(
        f"algorithm {algorithm} has admitted none of the last {len(groups)} groups, so there is nothing to train on",
        "look at their rewards: an algorithm may drop groups of equal rewards; raise rollout.n or rollout.temperature, "
        "or take easier prompts",
    )


def _publication(
    prepared: Prepared, policy: Policy, engines: Engines, journal: Journal, dtype: torch.dtype
) -> Publication:
    data, layout, settings = prepared.train, prepared.allocation.trainer.layout, prepared.settings
    rows = data.tokens if isinstance(data, EncodedPrompts) else [torch.cat(pair) for pair in data.examples]
    longest = min(prepared.longest, settings.trainer.tokens_per_microbatch)
    # Every data-parallel rank, and every stage of an interleaved pipeline, needs a sequence.
    probe = Probe(policy, engines, probe_sequences(rows, longest), layout.data * layout.pipeline, dtype)
    # `rollout/kl` shows what engines compute only where both sides have the same weights.
    judged = "old_logprobs" in settings.algorithm.columns - settings.algorithm.sampled_columns
    return Publication(policy, probe, journal, always=not judged or settings.trainer.max_staleness > 0)
