"""What a run's files say, for the report and for the end of a run.

Invariant: it reads a finished run, half a run and a run with few metrics alike; what is missing is absent from the
result, what is odd is in `notes`, and what is damaged is a UserError.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pentad.errors import UserError
from pentad.record.jsonl import read_jsonl
from pentad.record.run_dir import RunDir
from pentad.record.terminal import duration


@dataclass
class RunData:
    """What the files of a run directory say.

    Attributes:
        rows: step -> name -> value, steps rising; None stands for a value that was not finite.
        samples: rows of samples.jsonl, of the first and the last step that has any.
        settings: parsed config.yaml; empty if there is none.
        settings_text: config.yaml as it is.
        versions: parsed versions.json; empty if there is none.
        notes: what the reader of the report must know about the data.
    """

    rows: dict[int, dict[str, float | None]] = field(default_factory=dict)
    samples: list[list[dict[str, Any]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_text: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
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
        """`trainer.total_steps`, if config.yaml tells it."""
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
        data.samples = _first_and_last(read_jsonl(run_dir.samples, data.notes))
    if run_dir.config.is_file():
        data.settings_text = run_dir.config.read_text(encoding="utf-8")
        data.settings = _mapping(yaml.safe_load, data.settings_text, run_dir.config)
    if run_dir.versions.is_file():
        data.versions = _mapping(json.loads, run_dir.versions.read_text(encoding="utf-8"), run_dir.versions)
    data.notes += _health(data)
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
            n = max(1, min(10, len(values) // 10))
            facts[label] = f"{sum(values[:n]) / n:{form}} → {sum(values[-n:]) / n:{form}}"
            facts[label] += f" (means of {n} steps)" if n > 1 else ""
            break  # the loss of a policy gradient says nothing next to the reward
    if times := data.values("time/step"):
        facts["Time"] = f"{duration(sum(times))} ({sum(times) / len(times):.1f} s a step)"
    if samples := sum(data.values("data/samples_consumed")):
        facts["Samples"] = f"{samples:,.0f}"
    tokens = [
        rate * seconds
        for row in data.rows.values()
        if (rate := row.get("perf/tokens_per_s")) is not None and (seconds := row.get("time/step")) is not None
    ]
    if tokens and times:
        facts["Tokens"] = f"{sum(tokens):,.0f} ({sum(tokens) / sum(times):,.0f} a second)"
    return facts


def _health(data: RunData) -> list[str]:
    """What a reader should not overlook."""
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


def _first_and_last(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The samples of the first and of the last step; one group where those are the same."""
    first: list[dict[str, Any]] = []
    last: list[dict[str, Any]] = []
    for row in rows:
        if not first or row["step"] == first[0]["step"]:
            first.append(row)
        if not last or row["step"] != last[0]["step"]:
            last = []
        last.append(row)
    groups: Sequence[list[dict[str, Any]]] = (first,) if first == last else (first, last)
    return [group for group in groups if group]


def _mapping(parse: Callable[[str], Any], text: str, path: Path) -> dict[str, Any]:
    try:
        value = parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}", "restore or remove the file") from error
    return value if isinstance(value, dict) else {}
