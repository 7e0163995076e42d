"""The contents of a run's files, for the report.

Invariant: it reads a finished run, half a run and a run with few metrics alike; what is missing is absent from the
result, what is odd is in `notes`, and what is damaged is a UserError.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pentad.errors import UserError
from pentad.record.distributions import read_distributions
from pentad.record.jsonl import read_jsonl
from pentad.record.run_dir import RunDir
from pentad.record.sample_groups import SampleGroup, group_samples
from pentad.record.spans import Row, read_spans
from pentad.record.terminal import duration
from pentad.record.warnings import read_warnings


@dataclass
class RunData:
    """The contents of a run directory.

    Attributes:
        rows: step -> name -> value, steps rising; None stands for a value that was not finite.
        samples: those of samples.jsonl that are shown.
        spans: the steps of spans.jsonl.
        outcome: parsed outcome.json; empty if there is none, as while the run goes on.
        settings: parsed config.yaml; empty if there is none.
        settings_text: config.yaml as it is.
        versions: parsed versions.json; empty if there is none.
        lengths: parsed lengths.json, histograms of the training data; empty if there is none.
        distributions: of each step's responses: quantity -> step -> quantiles.
        notes: what the reader of the report must know about the data.
    """

    rows: dict[int, dict[str, float | None]] = field(default_factory=dict)
    samples: list[SampleGroup] = field(default_factory=list)
    spans: list[Row] = field(default_factory=list)
    outcome: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    lengths: dict[str, Any] = field(default_factory=dict)
    distributions: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Every metric's name, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))

    def points(self, name: str) -> list[tuple[int, float | None]]:
        """(step, value) of one metric, at the steps that have it."""
        return [(step, row[name]) for step, row in self.rows.items() if name in row]

    def values(self, name: str) -> list[float]:
        """The finite values of one metric."""
        return [value for _, value in self.points(name) if value is not None]

    @property
    def total_steps(self) -> int | None:
        """`trainer.total_steps`, if config.yaml has it."""
        trainer = self.settings.get("trainer")
        total = trainer.get("total_steps") if isinstance(trainer, dict) else None
        return total if isinstance(total, int) else None


def load_run(run_dir: RunDir | Path | str) -> RunData:
    """Read a run directory.

    Raises:
        UserError: there are no metrics, or a file is damaged.
    """
    run_dir = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
    if not run_dir.metrics.is_file():
        raise UserError(
            f"{run_dir.path} holds no metrics.jsonl", "name the directory of a run that has finished a step"
        )
    data = RunData()
    rows: dict[int, dict[str, float | None]] = {}
    for row in read_jsonl(run_dir.metrics, data.notes):
        values = {name: value for name, value in row.items() if name != "step"}
        bad = [name for name, value in values.items() if not (value is None or isinstance(value, int | float))]
        if bad:
            raise UserError(f"{run_dir.metrics}: step {row['step']}: {bad[0]} is no number", "remove that entry")
        rows.setdefault(row["step"], {}).update(values)
    data.rows = dict(sorted(rows.items()))
    if run_dir.samples.is_file():
        data.samples = group_samples(read_jsonl(run_dir.samples, data.notes))
    if run_dir.spans.is_file():
        data.spans = read_spans(run_dir.spans, data.notes)
    if run_dir.distributions.is_file():
        data.distributions = read_distributions(run_dir, data.notes)
    if run_dir.config.is_file():
        data.settings_text = run_dir.config.read_text(encoding="utf-8")
        data.settings = _mapping(yaml.safe_load, data.settings_text, run_dir.config)
    if run_dir.versions.is_file():
        data.versions = _mapping(json.loads, run_dir.versions.read_text(encoding="utf-8"), run_dir.versions)
    if run_dir.lengths.is_file():
        data.lengths = _mapping(json.loads, run_dir.lengths.read_text(encoding="utf-8"), run_dir.lengths)
    if run_dir.outcome.is_file():
        data.outcome = _mapping(json.loads, run_dir.outcome.read_text(encoding="utf-8"), run_dir.outcome)
    data.notes = [*read_warnings(run_dir, data.notes), *data.notes, *_health(data)]
    return data


def summarize(data: RunData) -> dict[str, str]:
    """The outcome in a few facts, for the head of the report and the end of a run. Absent metrics give no fact."""
    facts: dict[str, str] = {}
    last = max(data.rows, default=0)
    facts["Steps"] = f"{last} of {data.total_steps}" if data.total_steps is not None else str(last)
    for name in data.names:
        if name.startswith("eval/") and name.endswith("/accuracy") and (values := data.values(name)):
            label = f"Eval {name.removeprefix('eval/').removesuffix('/accuracy')}"
            best = max((value, -step) for step, value in data.points(name) if value is not None)
            facts[label] = f"{values[0]:.1%} → {values[-1]:.1%}" if len(values) > 1 else f"{values[0]:.1%}"
            if len(values) > 2 and best[0] > values[-1]:
                facts[label] += f" (best {best[0]:.1%} at step {-best[1]})"
    for label, name, form in (("Reward", "reward/mean", ".3f"), ("Loss", "train/loss", "#.3g")):
        if values := data.values(name):
            n = min(10, len(values) // 10)
            facts[label] = f"{values[0]:{form}} → {values[-1]:{form}}"
            if n > 1:
                facts[label] += f" (first and last step; mean of the last {n}: {sum(values[-n:]) / n:{form}})"
            break  # the loss of a policy gradient says nothing next to the reward
    facts |= _times(data)
    if samples := sum(data.values("data/samples_consumed")):
        facts["Samples"] = f"{samples:,.0f}"
    tokens = [
        rate * seconds
        for row in data.rows.values()
        if (rate := row.get("perf/tokens_per_s")) is not None and (seconds := row.get("time/step")) is not None
    ]
    if tokens and (times := data.values("time/step")):
        facts["Tokens"] = f"{sum(tokens):,.0f} ({sum(tokens) / sum(times):,.0f} a second)"
    return facts


def _times(data: RunData) -> dict[str, str]:
    """The time of the whole run, where it has ended; else that of its steps."""
    times, seconds = data.values("time/step"), data.outcome.get("seconds")
    each = f"{sum(times) / len(times):.1f} s a step" if times else ""
    if isinstance(seconds, int | float):
        return {"Time": f"{duration(seconds)} (from the command's start{'; ' + each if each else ''})"}
    return {"Time of the steps": f"{duration(sum(times))} ({each})"} if times else {}


def _health(data: RunData) -> list[str]:
    """Warnings about the data: values that are not finite, failed rewards, samples that were not used."""
    notes = []
    for name in data.names:
        if bad := [step for step, value in data.points(name) if value is None]:
            more = " and later" if len(bad) > 5 else ""
            notes.append(f"{name} was not finite at step {', '.join(map(str, bad[:5]))}{more}.")
    if failures := sum(data.values("reward/failures")):
        notes.append(f"Reward calls that failed and were scored 0: {failures:,.0f}.")
    generated, consumed = (data.values(f"data/samples_{what}") for what in ("generated", "consumed"))
    if generated and consumed and sum(generated) != sum(consumed):
        notes.append(f"{sum(generated):,.0f} samples were generated but {sum(consumed):,.0f} trained on.")
    return notes


def _mapping(parse: Callable[[str], Any], text: str, path: Path) -> dict[str, Any]:
    try:
        value = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}", "restore or remove the file") from error
    return value if isinstance(value, dict) else {}
