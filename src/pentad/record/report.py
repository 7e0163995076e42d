"""The report of a run: one HTML page that needs nothing but itself.

Invariant: it is made from the files of the run directory alone, of a finished run or of half a run; every metric
in metrics.jsonl is on the page; nothing that a model or a user wrote is taken for markup.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pentad.record.charts import line_chart, stacked_chart
from pentad.record.metrics import describe
from pentad.record.run_data import RunData, load_run, summarize
from pentad.record.run_dir import RunDir

_SHOWN_SAMPLES = 4
_KEY_PACKAGES = ("pentad", "torch", "megatron-core", "transformers", "ray", "vllm")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Chart:
    """A curve of the report: drawn when one of its metrics is in the file."""

    title: str
    names: tuple[str, ...]
    caption: str
    smooth: bool = True
    percent: bool = False


_CHARTS = (
    Chart("Reward", ("reward/mean",), "Mean reward of the samples of each step."),
    Chart("Loss", ("train/loss",), "Next to a reward, the loss is no measure of progress."),
    Chart("KL to the initial model", ("train/kl",), "Estimate per token. A sudden rise is a first sign of collapse."),
    Chart("Gradient norm", ("train/grad_norm",), "Before clipping."),
    Chart("Response length", ("rollout/response_length_mean",), "Mean, in tokens."),
    Chart(
        "Truncated responses",
        ("rollout/truncated_fraction",),
        "Cut off at rollout.max_response_tokens.",
        percent=True,
    ),
    Chart(
        "Engine against trainer",
        ("rollout/logprob_diff_max",),
        "Largest log-prob difference of a sampled token. Growth over the steps points to a bad weight sync.",
    ),
    Chart("Entropy", ("train/entropy",), "Of the policy, per token, in nats."),
    Chart("Clipped tokens", ("train/clip_fraction",), "Fraction whose ratio was clipped.", percent=True),
    Chart("Throughput", ("perf/tokens_per_s",), "Tokens a second over the whole step."),
    Chart("Learning rate", ("train/lr",), "", smooth=False),
    Chart(
        "Samples", ("data/samples_generated", "data/samples_consumed"), "Generated and trained on, each step.", False
    ),
    Chart("Reward spread", ("reward/std",), "Standard deviation. Near 0 there is nothing to learn from."),
    Chart("Failed reward calls", ("reward/failures",), "Errors and time-outs, scored 0.", False),
)


def write_report(run_dir: RunDir | Path | str) -> Path:
    """Write `<run>/report.html` from the run's files and return its path. An older report is replaced at once.

    Raises:
        UserError: there are no metrics, a file is damaged, or the disk is full.
    """
    run_dir = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
    data = load_run(run_dir)
    html = _render(data, run_dir)
    partial = run_dir.report.with_name("." + run_dir.report.name)
    with run_dir.writing():
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, run_dir.report)
    return run_dir.report


def _render(data: RunData, run_dir: RunDir) -> str:
    environment = Environment(
        loader=PackageLoader("pentad.record"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = _visible
    experiment = data.settings.get("experiment")
    name = experiment.get("name") if isinstance(experiment, dict) else None
    packages = data.versions.get("packages") or {}
    total, last = data.total_steps, max(data.rows, default=0)
    return environment.get_template("report.html.j2").render(
        name=str(name or run_dir.path.absolute().name),
        directory=str(run_dir.path),
        # Without a known end nothing can be said.
        unfinished=total is not None and last < total,
        facts=summarize(data),
        notes=data.notes,
        charts=_charts(data),
        samples=[group[:_SHOWN_SAMPLES] for group in data.samples],
        versions={key: packages[key] for key in _KEY_PACKAGES if key in packages},
        machine={key: data.versions.get(key) for key in ("python", "platform", "cpus", "gpus", "git_commit")},
        settings=data.settings_text,
        table=[(name, describe(name), _latest(data, name)) for name in data.names],
    )


def _charts(data: RunData) -> list[dict[str, str]]:
    """Evaluation and reward first, then health, then whatever else the run has written."""
    names = data.names
    drawn: set[str] = set()
    charts: list[Chart] = []
    accuracies = tuple(name for name in names if name.startswith("eval/") and name.endswith("/accuracy"))
    evaluation = Chart("Evaluation", accuracies, "Accuracy; step 0 is the model before training.", False, percent=True)
    for chart in (_CHARTS[0], evaluation, *_CHARTS[1:]):
        if present := tuple(name for name in chart.names if data.values(name)):
            charts.append(Chart(chart.title, present, chart.caption, chart.smooth, chart.percent))
            drawn.update(chart.names)
    parts = {name for name in names if name.startswith("time/")}
    rest = [name for name in names if name not in drawn | parts and data.values(name)]
    charts += [Chart(name, (name,), describe(name)) for name in rest]
    done = [
        {
            "title": chart.title,
            "caption": chart.caption,
            "svg": Markup(
                line_chart(
                    chart.title,
                    {_label(name): data.points(name) for name in chart.names},
                    _span(data),
                    smooth=chart.smooth,
                    percent=chart.percent,
                )
            ),
        }
        for chart in charts
    ]
    if times := _time_chart(data):
        done.insert(min(2, len(done)), times)
    return done


def _time_chart(data: RunData) -> dict[str, str] | None:
    steps = [step for step, row in data.rows.items() if row.get("time/step") is not None]
    if not steps:
        return None
    rows = [data.rows[step] for step in steps]
    phases = list(dict.fromkeys(name for row in rows for name in row if name.startswith("time/")))
    phases.remove("time/step")
    parts = {name.removeprefix("time/"): [row.get(name) or 0.0 for row in rows] for name in phases}
    rest = [max(0.0, (row["time/step"] or 0.0) - sum(row.get(name) or 0.0 for name in phases)) for row in rows]
    if not parts or sum(rest) > 0.01 * sum(row["time/step"] or 0.0 for row in rows):
        parts["other"] = rest
    title = "Time of a step"
    return {
        "title": title,
        "caption": "Seconds, by phase.",
        "svg": Markup(stacked_chart(title, steps, parts, _span(data))),
    }


def _span(data: RunData) -> tuple[int, int]:
    return min(data.rows), max(data.rows)


def _label(name: str) -> str:
    if name.startswith("eval/"):
        return name.removeprefix("eval/").removesuffix("/accuracy")
    return name.split("/")[-1].replace("_", " ")


def _latest(data: RunData, name: str) -> str:
    value = data.points(name)[-1][1]
    return "not finite" if value is None else f"{value:,.6g}"


def _visible(value: object) -> str:
    """Control characters as their code: a browser would drop them, and lone surrogates are no UTF-8."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))
