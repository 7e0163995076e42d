"""Progress and metrics of a run on the terminal.

Invariant: on a terminal, a live display that is removed however the block ends; anywhere else, plain lines without
control codes. A closed output never ends a run: the display then stops writing.
"""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pentad.record.metric import Metric
from pentad.record.metric_table import METRICS, find_metric

_COLUMNS = tuple(metric for metric in METRICS.values() if metric.heading)
_ROWS = 8
_NARROW = 100
_PLAIN_PHASE_S = 60.0


class Phase:
    """The progress of one phase of a step. Used as a context manager, or ended by the next phase or step."""

    def __init__(self, terminal: "Terminal", name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self._terminal = terminal
        self._tokens = 0
        self._note = ""
        self._start = time.monotonic()

    def advance(self, n: int = 1, note: str = "", tokens: int = 0) -> None:
        """Count `n` more done; show `note` until the next one; count `tokens` towards the tokens per second shown."""
        self.done += n
        self._tokens += tokens
        self._note = note or self._note
        self._terminal._advanced(self)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the phase began."""
        return time.monotonic() - self._start

    @property
    def note(self) -> str:
        """Tokens per second, if tokens are counted, and the latest note."""
        rate = f"{self._tokens / max(self.elapsed_s, 1e-3):,.0f} tokens/s" if self._tokens else ""
        return "  ".join(filter(None, (rate, self._note)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        # After an error the phase stays on the screen and shows where the run stopped.
        if kind is None:
            self._terminal._ended(self)


class Terminal:
    """A sink for metrics, and the only writer of progress to the terminal."""

    def __init__(
        self, total_steps: int, name: str, *, console: Console | None = None, live: bool | None = None
    ) -> None:
        """Args:
        total_steps: steps of the whole run.
        name: the experiment's name.
        console: where to print; default standard output.
        live: redraw in place; default only if the console is a real terminal. Variables that merely ask for
            colour (FORCE_COLOR in CI) do not count.
        """
        self._total = total_steps
        self._name = name
        self._console = console or Console()
        self._start = time.monotonic()
        self._step = 0
        # Replaced, never changed in place: the display's own thread reads them.
        self._rows: tuple[tuple[int, dict[str, float]], ...] = ()
        self._step_times: tuple[float, ...] = ()
        self._evals: dict[str, tuple[float, float, int]] = {}  # name: latest, best, step of the best
        self._phase: Phase | None = None
        self._last_plain = self._start
        interactive = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._live: Live | None = None
        if interactive if live is None else live:
            self._live = Live(console=self._console, get_renderable=self._render, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._start = self._last_plain = time.monotonic()
        if self._live:
            self._live.start(refresh=True)
        else:
            self._print(f"{self._name}: {self._total} steps")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def phase(self, name: str, total: int | None = None) -> Phase:
        """Begin a phase of `total` parts (completions, microbatches, rows); None where they cannot be counted."""
        self._phase = Phase(self, name, total)
        self._last_plain = time.monotonic()
        return self._phase

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step that has ended, or of an evaluation after it."""
        self._step = max(self._step, step)
        for name, value in metrics.items():
            if name.startswith("eval/") and name.endswith("/accuracy"):
                short = name.removeprefix("eval/").removesuffix("/accuracy")
                best, at = self._evals.get(short, (value, value, step))[1:]
                # Written so that a value that is not a number never stays the best.
                self._evals = {**self._evals, short: (value, *((best, at) if best >= value else (value, step)))}
        shown = {name: value for name, value in metrics.items() if not name.startswith("eval/")}
        if shown:
            if self._rows and self._rows[-1][0] == step:
                self._rows = (*self._rows[:-1], (step, {**self._rows[-1][1], **shown}))
            else:
                self._rows = (*self._rows, (step, shown))[-_ROWS:]
        if "time/step" in metrics:
            self._step_times = (*self._step_times, metrics["time/step"])[-20:]
        self._phase = None
        if not self._live:
            self._print(_plain_step(step, self._total, metrics))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The same as `step`: a terminal is a sink."""
        self.step(step, metrics)

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._print(text)

    def summary(self, facts: Mapping[str, str]) -> None:
        """Take the display down and print the facts, one a line, aligned."""
        self._phase = None
        self.close()
        width = max(map(len, facts), default=0)
        self._print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))

    def close(self) -> None:
        """Take the live display down; its last state stays on the screen. May be called twice."""
        if self._live:
            self._live.stop()

    def _advanced(self, phase: Phase) -> None:
        # In a log, a long phase shows that it is alive, once a minute.
        if self._live or phase is not self._phase or time.monotonic() - self._last_plain < _PLAIN_PHASE_S:
            return
        self._last_plain = time.monotonic()
        total = f"/{phase.total}" if phase.total is not None else ""
        parts = (f"step {self._step + 1}/{self._total}", f"{phase.name} {phase.done}{total}", phase.note)
        self._print("  ".join(filter(None, parts)))

    def _ended(self, phase: Phase) -> None:
        if phase is self._phase:
            self._phase = None

    def _print(self, text: str) -> None:
        if self._live:
            self._console.print(Text(text), soft_wrap=True)
            return
        file = self._console.file
        encoding = getattr(file, "encoding", None) or "utf-8"
        # A reader that has gone away (`| head`, a closed terminal) must not end the run.
        with suppress(BrokenPipeError, OSError):
            print(text.encode(encoding, "replace").decode(encoding), file=file, flush=True)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._rows:
            parts.append(self._table())
        if self._evals:
            parts.append(Text("  ".join(_eval_text(name, *values) for name, values in self._evals.items())))
        progress = Table.grid(padding=(0, 2))
        progress.add_column(style="bold", no_wrap=True)
        progress.add_row(
            Text(self._name),
            ProgressBar(total=self._total, completed=self._step, width=24),
            Text(f"{self._step}/{self._total}"),
            Text(self._clock(), style="dim"),
        )
        if (phase := self._phase) is not None:
            count = f"{phase.done}/{phase.total}" if phase.total is not None else str(phase.done or "")
            progress.add_row(
                Text(f"  {phase.name}", style="not bold"),
                ProgressBar(total=phase.total, completed=phase.done, width=24, pulse=phase.total is None),
                Text(count),
                Text("  ".join(filter(None, (duration(phase.elapsed_s), phase.note))), style="dim"),
            )
        return Group(*parts, progress)

    def _table(self) -> Table:
        rows = self._rows
        narrow = self._console.width < _NARROW
        columns = [
            (metric.heading, metric.name, metric.form)
            for metric in _COLUMNS
            if any(_is_shown(metric, row) for _, row in rows)
            and not (narrow and metric.wide and metric.name != _main_metric(rows))
        ]
        phases = dict.fromkeys(name for _, row in rows for name in row if name.startswith("time/"))
        phases.pop("time/step", None)
        columns += [(f"{name.removeprefix('time/')} s", name, ".1f") for name in phases]
        if any("time/step" in row for _, row in rows):
            columns.append(("s/step", "time/step", ".1f"))
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        table.add_column("step", justify="right", no_wrap=True)
        for head, _, _ in columns:
            table.add_column(head, justify="right", no_wrap=True)
        for step, row in rows:
            table.add_row(str(step), *(_cell(row.get(name), form) for _, name, form in columns))
        return table

    def _clock(self) -> str:
        elapsed = duration(time.monotonic() - self._start)
        left = self._total - self._step
        if not self._step_times or left <= 0:
            return elapsed
        return f"{elapsed}, about {duration(left * sum(self._step_times) / len(self._step_times))} left"


def _main_metric(rows: tuple[tuple[int, dict[str, float]], ...]) -> str:
    """The metric that the run is judged by; it is shown however narrow the terminal."""
    return "reward/mean" if any("reward/mean" in row for _, row in rows) else "train/loss"


def duration(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_shown(metric: Metric, metrics: Mapping[str, float]) -> bool:
    return metric.name in metrics and not (metric.only_if_set and metrics[metric.name] == 0)


def _is_percent(name: str) -> bool:
    metric = find_metric(name)
    return metric is not None and metric.percent


def _cell(value: float | None, form: str) -> Text:
    if value is None:
        return Text("-", style="dim")
    return Text(format(value, form), style="" if math.isfinite(value) else "bold red")


def _eval_text(name: str, latest: float, best: float, at: int) -> str:
    return f"eval {name}: {latest:.1%} (best {best:.1%} at step {at})"


def _plain_step(step: int, total: int, metrics: Mapping[str, float]) -> str:
    parts = [f"step {step}/{total}"]
    parts += [
        f"{column.heading} {metrics[column.name]:{column.form}}" for column in _COLUMNS if _is_shown(column, metrics)
    ]
    evals = {name: value for name, value in metrics.items() if name.startswith("eval/")}
    parts += [f"{name} {value:.1%}" if _is_percent(name) else f"{name} {value:.4g}" for name, value in evals.items()]
    times = [f"{n.removeprefix('time/')} {v:.1f}" for n, v in metrics.items() if n.startswith("time/")]
    times = [entry for entry in times if not entry.startswith("step ")]
    if "time/step" in metrics:
        parts.append(f"{metrics['time/step']:.1f} s" + (f" ({', '.join(times)})" if times else ""))
    return "  ".join(parts)
