"""What a loop says of itself: phases and their times, metrics, sample texts.

Invariant: metrics of a step are written once; what came before the first step is not part of it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from transformers import PreTrainedTokenizerBase

from pentad.loops.group import Group
from pentad.record.distributions import DistributionLog
from pentad.record.metrics import Sinks, Timer
from pentad.record.occupancy import Lanes, lanes_of, utilisation
from pentad.record.outcome import Status
from pentad.record.samples import SampleLog
from pentad.record.spans import SpansLog
from pentad.record.terminal import Terminal
from pentad.record.timeline import Timeline, Window
from pentad.record.warnings import WarningLog
from pentad.rewards.builtin import truth_text

_SHOWN = 4


class Journal:
    """Terminal, sinks, sample log and warnings of a run.

    Attributes:
        status: what is being done, for whoever reports the end of the run.
        timeline: takes down what each process does.
    """

    def __init__(
        self,
        terminal: Terminal,
        sinks: Sinks,
        samples: SampleLog,
        status: Status,
        tokenizer: PreTrainedTokenizerBase,
        timeline: Timeline,
        spans: SpansLog,
        warnings: WarningLog,
        distributions: DistributionLog | None = None,
    ) -> None:
        self._terminal, self._sinks, self._samples, self.status = terminal, sinks, samples, status
        self._tokenizer = tokenizer
        self._timer = Timer()
        self.timeline, self._spans, self._warnings = timeline, spans, warnings
        self._distributions = distributions
        # Of the step that was timed last and is not written yet.
        self._timed: tuple[Window, Lanes] | None = None
        self._step: int | None = None

    def progress(self, name: str, total: int | None = None) -> Callable[[int], None]:
        """Show a phase; the result is called with how much of it is done."""
        self.status.phase = name
        phase = self._terminal.phase(name, total)
        shown = 0

        def advance(done: int) -> None:
            nonlocal shown
            if done > shown:
                phase.advance(done - shown)
                shown = done

        return advance

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Add the time of the block to `time/<phase>`."""
        return self._timer.phase(phase)

    def times(self) -> dict[str, float]:
        """`time/<phase>`, `time/step` and `util/*` since the last call; starts the next step."""
        window = self.timeline.cut()
        lanes = lanes_of(window)
        self._timed = (window, lanes)
        return self._timer.metrics() | utilisation(lanes, window.seconds)

    def between(self) -> None:
        """What was done since the last `times` is part of no step; it is kept as what followed on the last one."""
        self.times()
        if self._step is not None:
            self._keep_spans(self._step, after=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give metrics to all sinks."""
        self._sinks.write(step, metrics)
        if "time/step" in metrics:
            self._step = step
            self._keep_spans(step, after=False)

    def _keep_spans(self, step: int, *, after: bool) -> None:
        if self._timed is not None:
            (window, lanes), self._timed = self._timed, None
            self._spans.write(step, window.began, window.seconds, lanes, after=after)

    def message(self, text: str) -> None:
        """Show a line."""
        self._terminal.message(text)

    def warn(self, step: int, name: str, text: str) -> None:
        """Show a warning, and keep it with the run."""
        self.message(f"warning: {text}")
        self._warnings.write(step, name, text)

    def tell_failure(self, failure: str, message: str) -> None:
        """The first failure of a kind of the reward."""
        self.message(f"reward failed ({failure}): {message}; further ones are only counted")

    def keep_distributions(self, step: int, groups: Iterable[Group]) -> None:
        """Keep how long the responses of a step are, and how sure of its tokens the policy was."""
        if self._distributions is None:
            return
        sampled = [one.logprobs[one.sampled] for group in groups for one in group.trajectories]
        entropies = [-float(logprobs.double().mean()) for logprobs in sampled if len(logprobs)]
        self._distributions.write(step, {"length": list(map(len, sampled)), "entropy": entropies})

    def keep_samples(self, step: int, source: str, groups: Iterable[Group]) -> None:
        """Keep a few completions as text."""
        left = _SHOWN
        for group in groups:
            kept = zip(group.trajectories[:left], group.results[:left], group.finish_reasons[:left], strict=True)
            for trajectory, result, reason in kept:
                response = trajectory.tokens[trajectory.sampled].tolist()
                truth = group.row.ground_truth
                self._samples.write(
                    step,
                    str(self._tokenizer.decode(group.prompt.tolist())),
                    str(self._tokenizer.decode(response, skip_special_tokens=True)),
                    result.score,
                    source=source,
                    finish_reason=reason,
                    answer=None if truth is None else truth_text(truth),
                )
            left -= min(left, len(group.trajectories))
            if not left:
                return
