"""The loop: one for all algorithms and all ways of making batches.

Invariant: each sample that was generated is trained on exactly once, by weights at most `max_staleness` publications
newer than those that sampled it. A step is: batch, columns, credit, optimizer steps, publication, record.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pentad.algorithms.protocol import Algorithm
from pentad.config.schema.algorithms.base import AlgorithmSettings, Role
from pentad.config.schema.trainer import TrainerSettings
from pentad.errors import UserError
from pentad.loops.drift import DriftWatch, drift
from pentad.loops.evaluation import Evaluation
from pentad.loops.journal import Journal
from pentad.loops.publication import Publication
from pentad.loops.roles import Engines, Trainer
from pentad.loops.sources import Source
from pentad.loops.stages import compute_columns
from pentad.record.metrics import merge
from pentad.samples.batch import Batch
from pentad.samples.packing import split_minibatches
from pentad.samples.trajectory import NOT_SAMPLED


@dataclass
class Parts:
    """What a loop is made of.

    Attributes:
        roles: the models; `policy` is always there.
        engines: None where nothing is generated.
        publication: None where nothing is generated.
        evaluation: None where nothing is evaluated.
        temperature: that samples are drawn at.
        drift_watch: judges how far engines and trainer are apart; None where nothing is generated.
    """

    settings: TrainerSettings
    algorithm_settings: AlgorithmSettings
    algorithm: Algorithm
    roles: Mapping[Role, Trainer]
    source: Source
    journal: Journal
    engines: Engines | None
    publication: Publication | None
    evaluation: Evaluation | None
    temperature: float
    max_staleness: int = 0
    drift_watch: DriftWatch | None = None


class Loop:
    """A run between its first and its last step.

    Attributes:
        step: steps that are done.
        version: of the weights; the number of optimizer steps behind them.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._losses = parts.algorithm.losses()
        self._versions: deque[int] = deque(maxlen=parts.max_staleness + 1)
        # Engines start with the memory of a whole set of weights.
        self._engines_hold_memory = True
        self.step = 0
        self.version = 0

    async def run(self) -> None:
        """All steps.

        Raises:
            UserError, RunFailedError: what ended the run.
        """
        parts = self._parts
        try:
            if parts.settings.val_before_train and self.step == 0:
                await self._evaluate()
            if parts.source.generates:
                await self._publish()
            parts.journal.times()  # what came before the first step is not part of it
            while self.step < parts.settings.total_steps:
                await self._step()
        finally:
            await parts.source.close()

    async def _step(self) -> None:
        parts, journal, number = self._parts, self._parts.journal, self.step + 1
        journal.status.step = number
        batch, metrics = await parts.source.take(number, self._versions)
        with journal.timed("train"):
            if parts.engines is not None and self._engines_hold_memory:
                await parts.engines.sleep()
                self._engines_hold_memory = False
            batch = await compute_columns(
                batch, parts.algorithm_settings.columns, parts.roles, parts.temperature, journal
            )
            apart = self._drift(batch)
            batch = parts.algorithm.credit(batch)
            self._check_read(batch)
            trained = await self._train(batch)
        self.step = number
        if parts.source.generates:
            await self._publish()
        await parts.source.release()
        metrics = merge(metrics, trained, apart, journal.times())
        metrics["perf/tokens_per_s"] = batch.num_tokens / metrics["time/step"]
        journal.write(number, metrics)
        every = parts.settings.test_freq
        if number == parts.settings.total_steps or (every and number % every == 0):
            await self._evaluate()
            journal.times()

    def _drift(self, batch: Batch) -> dict[str, float]:
        """Metrics of how far engines and trainer are apart, which are judged where both had the same weights.

        Raises:
            SyncError: they are too far apart.
        """
        metrics, watch = drift(batch), self._parts.drift_watch
        if metrics and watch is not None:
            versions = batch.per_sequence["weight_versions"]  # -1 where nothing was sampled
            if bool(((versions == self.version) | (versions == NOT_SAMPLED)).all()):
                watch.check(metrics["rollout/kl"])
        return metrics

    async def _train(self, batch: Batch) -> dict[str, float]:
        """The optimizer steps on a batch."""
        parts, metrics, consumed = self._parts, [], Counter[int]()
        groups = batch.per_sequence.get("group_ids")
        updates = parts.algorithm_settings.updates
        for part in split_minibatches(batch.num_sequences, updates, None if groups is None else groups.tolist()):
            minibatch = batch.select(part) if updates > 1 else batch
            if not bool(minibatch.loss_mask.any()):
                # All its samples were left out; a step would follow nothing but old momentum.
                consumed.update(minibatch.sample_ids.tolist())
                continue
            for role, loss in self._losses.items():
                progress = parts.journal.progress("training" if role == "policy" else f"training of the {role}")
                trained = await parts.roles[role].train(minibatch, loss, parts.temperature, progress)
                if role == "policy":
                    metrics.append(trained.metrics)
                    consumed.update(trained.sample_ids)
            self.version += 1
        if consumed != Counter(batch.sample_ids.tolist()):
            raise AssertionError("a sample was trained on twice or not at all")
        names = dict.fromkeys(name for step in metrics for name in step)
        joined = {name: fmean(step[name] for step in metrics if name in step) for name in names}
        if metrics:
            joined["train/lr"] = metrics[-1]["train/lr"]
        left_out = 0 if (scored := batch.per_sequence.get("scored")) is None else int((~scored).sum())
        counts = {"data/samples_consumed": consumed.total() - left_out, "data/samples_left_out": left_out}
        return {**joined, **counts}

    def _check_read(self, batch: Batch) -> None:
        for loss in self._losses.values():
            if missing := sorted(loss.reads - batch.per_token.keys() - batch.per_sequence.keys()):
                raise UserError(
                    f"algorithm.name={self._parts.algorithm_settings.name}: its loss reads {', '.join(missing)}, which "
                    f"the batch has not; it has {', '.join(sorted([*batch.per_token, *batch.per_sequence]))}",
                    "add it in credit(), or state it in columns",
                )

    async def _publish(self) -> None:
        if self._parts.publication is None:
            raise RuntimeError("there are no rollout engines")
        await self._parts.publication.bring(self.version)
        self._engines_hold_memory = True
        self._versions.append(self.version)

    async def _evaluate(self) -> None:
        if self._parts.evaluation is not None:
            await self._publish()
            await self._parts.evaluation.run(self.step)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the driver must know to go on after a step; models and engines keep their own."""
        watch = self._parts.drift_watch
        return {
            "step": self.step,
            "version": self.version,
            "source": self._parts.source.state_dict(),
            "drift": None if watch is None else watch.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, before `run`."""
        self.step, self.version = state["step"], state["version"]
        self._parts.source.load_state_dict(state["source"])
        if self._parts.drift_watch is not None:
            self._parts.drift_watch.load_state_dict(state["drift"])
