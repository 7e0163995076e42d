"""The loop: one for all algorithms and all ways of making batches.

A loop that is asked to stop leaves what does not change the weights at once, finishes an optimizer step, and saves.

Invariant: each sample that was generated is trained on exactly once, by weights at most `max_staleness` publications
newer than those that sampled it. A step is: batch, columns, credit, optimizer steps, publication, record.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pentad.algorithms.importance import importance_weights
from pentad.algorithms.protocol import Algorithm, Loss, algorithm_state, load_algorithm_state
from pentad.algorithms.reduction import trained_sequences
from pentad.config.schema.algorithms.base import AlgorithmSettings, Role
from pentad.config.schema.algorithms.correction import CorrectionSettings
from pentad.config.schema.trainer import TrainerSettings
from pentad.errors import UserError
from pentad.loops.devices import Work, do_all
from pentad.loops.drift import DriftWatch, judged_drift
from pentad.loops.evaluating import Evaluations
from pentad.loops.evaluation import Evaluation
from pentad.loops.journal import Journal
from pentad.loops.publication import Publication
from pentad.loops.roles import Engines, Progress, Trainer
from pentad.loops.saving import Saver
from pentad.loops.skipping import SkippedUpdates
from pentad.loops.sources import Source
from pentad.loops.stages import SAMPLED_COLUMNS, compute_columns
from pentad.loops.stopping import Stop, StopNow, StoppedError
from pentad.loops.updates import join_updates
from pentad.loops.watch import LearningWatch
from pentad.record.metrics import merge
from pentad.samples.batch import Batch
from pentad.samples.packing import split_minibatches

# A checkpoint that is being written when the run fails may take that long.
_PATIENCE_S = 8.0


@dataclass
class Parts:
    """What a loop is made of.

    Attributes:
        roles: the models; `policy` is always there.
        devices: where each model is; those that are apart work at the same time, those that are not named are together.
        engines: None where nothing is generated.
        publication: None where nothing is generated.
        evaluation: None where nothing is evaluated.
        temperature: that samples are drawn at.
        max_staleness: publications between sampling and training.
        correction: importance weights of what other weights have sampled; None: none.
        drift_watch: judges how far engines and trainer are apart; None where nothing is generated.
        learning_watch: says when nothing is learnt.
        saver: writes checkpoints; None where none are asked for.
        critic_warmup: steps at the beginning in which the critic alone is trained.
        export: writes the model of a step as a Hugging Face directory; whether it replaces one that is there.
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
    devices: Mapping[Role, Hashable] = field(default_factory=dict)
    correction: CorrectionSettings | None = None
    drift_watch: DriftWatch | None = None
    learning_watch: LearningWatch | None = None
    saver: Saver | None = None
    critic_warmup: int = 0
    export: Callable[[int, bool], Awaitable[None]] | None = None


class Loop:
    """A run between its first and its last step.

    Attributes:
        step: steps that are done.
        version: of the weights; the number of optimizer steps behind them, those of the critic's warmup included.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._losses = parts.algorithm.losses()
        # Of the last publications: what may have sampled a batch.
        self._versions: deque[int] = deque(maxlen=parts.max_staleness + 1)
        # Engines start with the memory of a whole set of weights.
        self._engines_hold_memory = True
        self.step = 0
        self.version = 0
        # As it was after the last step; a step that is left changes what it is taken from.
        self._boundary: dict[str, Any] | None = None
        self._stop = Stop()
        self._evaluations = Evaluations(parts.evaluation, parts.settings, self._stop, self._publish)
        self._skipped = SkippedUpdates(parts.settings.max_skipped_steps, parts.journal.message)
        self._last_metrics: dict[str, float] = {}

    async def run(self) -> None:
        """All steps.

        Raises:
            UserError, RunFailedError: what ended the run.
            StoppedError: it was asked to stop.
        """
        parts = self._parts
        try:
            await self._run()
            if parts.saver is not None:
                await parts.saver.wait()
        except StopNow:
            raise StoppedError(await self._save_boundary()) from None
        except Exception:
            # What failed may have nothing to do with the checkpoint that is being written.
            if parts.saver is not None:
                await parts.saver.settle(_PATIENCE_S)
            raise
        finally:
            if parts.saver is not None:
                await parts.saver.close()
            await parts.source.close()

    @property
    def saves(self) -> bool:
        """Whether it writes checkpoints."""
        return self._parts.saver is not None

    def stop(self) -> None:
        """Have `run` save and end, as soon as the weights are those of a whole step. On the loop's thread."""
        self._stop.request()

    async def _run(self) -> None:
        parts = self._parts
        self._boundary = self.state_dict()
        await self._export_if_due(replace=False)  # a run that was killed may have done the step and not its export
        if self._evaluations.due(self.step):
            await self._evaluations.run(self.step)
        if parts.source.generates and self.step < parts.settings.total_steps:
            await self._publish()
        parts.journal.times()  # what came before the first step is not part of it
        while self.step < parts.settings.total_steps:
            await self._step()

    async def _step(self) -> None:
        parts, journal, number = self._parts, self._parts.journal, self.step + 1
        journal.status.step = number
        batch, metrics = await self._stop.unless(parts.source.take(number, tuple(self._versions)))
        with journal.timed("train"):
            if parts.engines is not None and self._engines_hold_memory:
                await parts.engines.sleep()
                self._engines_hold_memory = False
            sampled = parts.algorithm_settings.sampled_columns
            columns = parts.algorithm_settings.columns - sampled
            computing = compute_columns(batch, columns, parts.roles, parts.temperature, journal, parts.devices)
            batch = await self._stop.unless(computing)
            apart = judged_drift(batch, self.version, parts.drift_watch)
            for column in sampled:
                batch = batch.with_per_token(column, batch.per_token[SAMPLED_COLUMNS[column]])
            batch = parts.algorithm.credit(batch)
            if parts.correction is not None:
                batch, weighed = importance_weights(batch, parts.correction)
                apart |= weighed
            _check_read(batch, self._losses, parts.algorithm_settings)
            trained = await self._train(batch)
        self.step = number
        if parts.source.generates and not self._stop.requested:
            await self._publish()
        await parts.source.release()
        await self._finish_step(merge(metrics, trained, apart), batch.num_tokens)

    async def _finish_step(self, metrics: dict[str, float], tokens: int) -> None:
        """Record, evaluate and save the step that was trained."""
        parts, journal, saver = self._parts, self._parts.journal, self._parts.saver
        signs = [] if parts.learning_watch is None else parts.learning_watch.see(self.step, metrics)
        self._boundary = self.state_dict()
        if saver is not None and (saver.due(self.step) or self._stop.requested):
            await saver.stage(self.step, self.version)
            metrics |= saver.metrics
        metrics = merge(metrics, journal.times())
        metrics["perf/tokens_per_s"] = tokens / metrics["time/step"]
        journal.write(self.step, metrics)
        self._last_metrics = metrics
        for name, text in signs:
            journal.warn(self.step, name, text)
        try:
            if self._evaluations.due(self.step):
                metrics |= await self._evaluations.run(self.step)
                journal.between()
        finally:
            if saver is not None:
                self._boundary["evaluated"] = self._evaluations.evaluated
                saver.commit(self._boundary, metrics)
        await self._export_if_due(replace=True)
        if self._stop.requested and self.step < parts.settings.total_steps:
            raise StopNow

    async def _export_if_due(self, *, replace: bool) -> None:
        """Write the model of a step that has one; where that fails, say so and go on."""
        parts, every = self._parts, self._parts.settings.hf_save_freq
        if parts.export is None or not self.step or not every or self.step % every:
            return
        try:
            with parts.journal.timed("save"):
                await parts.export(self.step, replace)
        except UserError as error:
            parts.journal.message(f"the model of step {self.step} could not be written: {error.cause}; the run goes on")

    async def _save_boundary(self) -> int | None:
        """Save the last step that was finished; returns the step of the newest checkpoint."""
        saver, boundary = self._parts.saver, self._boundary
        if saver is None or boundary is None:
            return None
        await saver.wait()
        if boundary["step"] and saver.saved != boundary["step"]:
            await saver.stage(boundary["step"], boundary["version"])
            saver.commit(boundary, self._last_metrics)
            await saver.wait()
        return saver.saved

    async def _train(self, batch: Batch) -> dict[str, float]:
        """The optimizer steps on a batch."""
        parts, left_out = self._parts, Counter[int]()
        # In the critic's warmup the policy stays what it is.
        roles = [role for role in self._losses if role != "policy" or self.step >= parts.critic_warmup]
        metrics: dict[Role, list[Mapping[str, float]]] = {role: [] for role in roles}
        consumed = {role: Counter[int]() for role in roles}
        groups = batch.per_sequence.get("group_ids")
        updates, updated = parts.algorithm_settings.updates, 0
        work: list[Work] = []
        for part in split_minibatches(batch.num_sequences, updates, None if groups is None else groups.tolist()):
            minibatch = batch.select(part) if updates > 1 else batch
            if not bool(minibatch.loss_mask.any()):
                # All its samples were left out; a step would follow nothing but old momentum.
                left_out.update(minibatch.sample_ids.tolist())
                continue
            for role in roles:
                work.append(self._optimizer_step(role, minibatch, metrics[role], consumed[role]))
            updated += 1
        await do_all(work, parts.devices, parts.journal)
        self.version += updated
        whole = Counter(batch.sample_ids.tolist())
        if any(samples + left_out != whole for samples in consumed.values()):
            raise AssertionError("a sample was trained on twice or not at all")
        joined = {name: value for role in roles for name, value in join_updates(role, metrics[role]).items()}
        failed = 0 if (kept := trained_sequences(batch)) is None else int((~kept).sum())
        return {**joined, "data/samples_consumed": whole.total() - failed, "data/samples_left_out": failed}

    def _optimizer_step(
        self, role: Role, minibatch: Batch, metrics: list[Mapping[str, float]], consumed: Counter[int]
    ) -> Work:
        parts = self._parts

        async def do(progress: Progress) -> None:
            trained = await parts.roles[role].train(minibatch, self._losses[role], parts.temperature, progress)
            self._skipped.count(role, trained)
            metrics.append(trained.metrics)
            consumed.update(trained.sample_ids)

        return Work(role, "training" if role == "policy" else f"training of the {role}", do)

    async def _publish(self) -> None:
        if self._parts.publication is None:
            raise RuntimeError("there are no rollout engines")
        if not self._versions or self._versions[-1] != self.version:
            with suppress(StopNow):
                await self._stop.unless(self._parts.source.hold())
            if self._stop.requested:
                return  # what is held will not be trained on by this process
            self._versions.append(self.version)
        await self._parts.publication.bring(self.version, asleep=not self._engines_hold_memory)
        await self._parts.source.go_on()
        self._engines_hold_memory = True

    def state_dict(self) -> dict[str, Any]:
        """Everything that the driver must know to go on after a step; models and engines keep their own."""
        watch, learning = self._parts.drift_watch, self._parts.learning_watch
        return {
            "step": self.step,
            "version": self.version,
            "versions": list(self._versions),
            "max_staleness": self._parts.max_staleness,
            "evaluated": self._evaluations.evaluated,
            "source": self._parts.source.state_dict(),
            "drift": None if watch is None else watch.state_dict(),
            "learning": None if learning is None else learning.state_dict(),
            "skipped": self._skipped.state_dict(),
            "algorithm": algorithm_state(self._parts.algorithm),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, before `run`."""
        self.step, self.version = state["step"], state["version"]
        self._evaluations.evaluated = state["evaluated"]
        self._versions.extend(state.get("versions", ()))
        self._parts.source.load_state_dict(state["source"])
        if state.get("max_staleness", 0) > self._parts.max_staleness:
            self._parts.source.sample_again()
        if self._parts.drift_watch is not None and state["drift"] is not None:
            self._parts.drift_watch.load_state_dict(state["drift"])
        if self._parts.learning_watch is not None and state.get("learning") is not None:
            self._parts.learning_watch.load_state_dict(state["learning"])
        self._skipped.load_state_dict(state["skipped"])
        load_algorithm_state(self._parts.algorithm, state["algorithm"])


def _check_read(batch: Batch, losses: Mapping[Role, Loss], settings: AlgorithmSettings) -> None:
    for loss in losses.values():
        if missing := sorted(loss.reads - batch.per_token.keys() - batch.per_sequence.keys()):
            raise UserError(
                f"algorithm.name={settings.name}: its loss reads {', '.join(missing)}, which "
                f"the batch has not; it has {', '.join(sorted([*batch.per_token, *batch.per_sequence]))}",
                "add it in credit(), or state it in columns",
            )
