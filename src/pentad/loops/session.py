"""What the loops of all algorithms share: the parts of a running experiment, weight synchronisation, evaluation.

Invariant: engines never generate from weights whose arrival was not checked; the first time, their log-probs are
compared with the trainer's too.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from pentad.cluster.engines import Engines
from pentad.cluster.publication import PublishedPolicy
from pentad.cluster.trainers import RoleTrainer
from pentad.data.prompts import EncodedPrompts
from pentad.data.rows import PromptRow
from pentad.loops.scoring import reward_item
from pentad.record.metrics import Sinks, Timer, accuracy_name
from pentad.record.outcome import Status
from pentad.record.run_dir import RunDir
from pentad.record.samples import SampleLog
from pentad.record.terminal import Terminal
from pentad.rewards.builtin import truth_text
from pentad.rewards.pool import RewardPool
from pentad.rewards.types import RewardResult
from pentad.run.prepare import Prepared
from pentad.samples.batch import Batch, Completion
from pentad.samples.request import GenerateRequest, SamplingParams
from pentad.weights.proof import check_probe

_PROBES = 4
_PROBE_TOKENS = 256
# A reward this close to 1 counts as a correct answer.
_CORRECT = 1 - 1e-6


@dataclass
class Session:
    """A running experiment.

    Attributes:
        version: of the weights that the engines hold; the number of optimizer steps behind them.
    """

    prepared: Prepared
    run_dir: RunDir
    terminal: Terminal
    sinks: Sinks
    samples: SampleLog
    policy: RoleTrainer
    reference: RoleTrainer | None
    engines: Engines | None
    rewards: RewardPool | None
    status: Status
    timer: Timer = field(default_factory=Timer)
    version: int = 0
    _probed: bool = False

    def progress(self, name: str, total: int | None = None) -> Callable[[int], None]:
        """Show a phase; the result is called with how much of it is done."""
        self.status.phase = name
        phase = self.terminal.phase(name, total)
        shown = 0

        def advance(done: int) -> None:
            nonlocal shown
            if done > shown:
                phase.advance(done - shown)
                shown = done

        return advance

    def synchronize(self) -> None:
        """Bring the trainer's weights to the engines."""
        engines = self._engines
        with self.timer.phase("sync"):
            self.progress("sync")
            assert isinstance(self.policy, PublishedPolicy)
            asyncio.run(self.policy.publish(self.version))
            if not self._probed:
                self._probe(engines)
                self._probed = True

    def _probe(self, engines: Engines) -> None:
        sequences = [_probe_sequence(tokens) for tokens in self._tokens(_PROBES)]
        # Every data-parallel rank, and every stage of an interleaved pipeline, needs a sequence.
        layout = self.prepared.allocation.trainer.layout
        copies = layout.data * layout.pipeline
        batch = Batch.from_sequences([(sequence[:1], sequence[1:]) for sequence in sequences] * copies)
        temperature = self.prepared.settings.rollout.temperature
        scored = asyncio.run(self.policy.logprobs(batch, temperature, lambda done: None))
        expected = scored.split(batch.lengths)
        coarser = torch.bfloat16 if torch.bfloat16 in (engines.dtype, self.policy.dtype) else torch.float32
        for rank, found in enumerate(asyncio.run(engines.logprobs(sequences, temperature))):
            check_probe(expected[: len(sequences)], found, coarser, f"engine {rank}")

    def _tokens(self, count: int) -> list[Tensor]:
        """The first sequences of the training data, as the model is trained on them."""
        data = self.prepared.train
        if isinstance(data, EncodedPrompts):
            return list(data.tokens[:count])
        return [torch.cat(pair) for pair in data.examples[:count]]

    def generate(self, requests: Sequence[GenerateRequest], phase: str) -> list[list[Completion]]:
        """Complete requests, showing progress."""
        total = sum(request.params.n for request in requests)
        return asyncio.run(self._engines.generate(requests, self.progress(phase, total)))

    def score(self, rows: Sequence[PromptRow], completions: Sequence[Completion]) -> list[RewardResult]:
        """The reward of each completion; `rows[i]` is what `completions[i]` answers."""
        if self.rewards is None:
            raise RuntimeError("there are no rewards")
        texts = self.decode(completions)
        items = [reward_item(row, text) for row, text in zip(rows, texts, strict=True)]
        return self.rewards.score(items, self._tell_failure)

    def check_rewards(self, results: Sequence[RewardResult]) -> None:
        """End the run where every reward call failed; a part of them is only counted.

        Raises:
            UserError: that is so.
        """
        if self.rewards is not None:
            self.rewards.check_results(results)

    def _tell_failure(self, failure: str, message: str) -> None:
        self.terminal.message(f"reward failed ({failure}): {message}; it scores 0, and further ones are only counted")

    def decode(self, completions: Sequence[Completion]) -> list[str]:
        """Responses as text, without special tokens."""
        return self.prepared.tokenizer.batch_decode(
            [completion.response_tokens.tolist() for completion in completions], skip_special_tokens=True
        )

    def evaluate(self, step: int) -> dict[str, float]:
        """Accuracy on every evaluation set, written to the sinks at `step`.

        Raises:
            UserError: before the first step every reward call failed.
        """
        settings = self.prepared.settings.rollout
        params = SamplingParams(
            temperature=settings.eval_temperature, max_tokens=settings.max_response_tokens, stop=tuple(settings.stop)
        )
        metrics: dict[str, float] = {}
        answers: dict[str, tuple[list[Completion], list[RewardResult]]] = {}
        with self.timer.phase("eval"):
            for name, prompts in self.prepared.eval.items():
                requests = [
                    GenerateRequest(tokens, f"eval-{name}-{index}", params)
                    for index, tokens in enumerate(prompts.tokens)
                ]
                completions = [answer[0] for answer in self.generate(requests, f"eval {name}")]
                answers[name] = (completions, self.score(prompts.rows, completions))
            if step == 0:  # later there is a model to be kept
                self.check_rewards([result for _, results in answers.values() for result in results])
            for name, (completions, results) in answers.items():
                metrics[accuracy_name(name)] = fmean(result.score >= _CORRECT for result in results)
                metrics[f"eval/{name}/reward"] = fmean(result.score for result in results)
                metrics[f"eval/{name}/response_length_mean"] = fmean(len(c.response_tokens) for c in completions)
                self.log_samples(step, name, self.prepared.eval[name].rows, completions, results)
        self.sinks.write(step, metrics)
        return metrics

    def log_samples(
        self,
        step: int,
        source: str,
        rows: Sequence[PromptRow],
        completions: Sequence[Completion],
        results: Sequence[RewardResult],
    ) -> None:
        """Keep a few completions as text."""
        few = slice(0, 4)
        prompts = self.prepared.tokenizer.batch_decode([c.prompt_tokens.tolist() for c in completions[few]])
        texts = self.decode(completions[few])
        for row, prompt, text, completion, result in zip(
            rows[few], prompts, texts, completions[few], results[few], strict=True
        ):
            answer = None if row.ground_truth is None else truth_text(row.ground_truth)
            self.samples.write(
                step, prompt, text, result.score, source=source, finish_reason=completion.finish_reason, answer=answer
            )

    @property
    def _engines(self) -> Engines:
        if self.engines is None:
            raise RuntimeError("there are no rollout engines")
        return self.engines


def _probe_sequence(tokens: Tensor) -> Tensor:
    """Int64 `[L]` with L of 2 at least: the first token has no log-prob to compare."""
    return (tokens if len(tokens) > 1 else tokens.repeat(2))[:_PROBE_TOKENS]
