"""The report of a run: one HTML page that needs nothing but itself.

Invariant: it is made from the files of the run directory alone, of a finished run or of half a run; every metric
in metrics.jsonl is on the page; nothing that a model or a user wrote is taken for markup.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pentad.record.charts import band_chart, bar_chart, line_chart, stacked_chart
from pentad.record.distributions import TITLES
from pentad.record.metric import Metric
from pentad.record.metric_table import METRICS, describe, find_metric
from pentad.record.run_data import RunData, load_run, summarize
from pentad.record.run_dir import RunDir
from pentad.record.timeline_chart import choose_rows, picture

_SHOWN_SAMPLES = 4
_KEY_PACKAGES = ("pentad", "torch", "megatron-core", "transformers", "ray", "vllm")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


_STALENESS = "staleness/share_"
_BESIDE_A_REWARD = "Next to a reward, the loss is no measure of progress."


def write_report(run_dir: RunDir | Path | str) -> Path:
    """Write `<run>/report.html` from the run's files and return its path. An older report is replaced at once.

    Raises:
        UserError: there are no metrics, a file is damaged, or the disk is full.
    """
    run_dir = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
    html = render_report(run_dir)
    partial = run_dir.report.with_name("." + run_dir.report.name)
    with run_dir.writing():
        partial.write_text(html, encoding="utf-8")
        os.replace(partial, run_dir.report)
    return run_dir.report


def template(name: str) -> Template:
    """One of the pages; what is put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("pentad.record"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = _visible
    return environment.get_template(name)


def render_report(run_dir: RunDir) -> str:
    """The page as text.

    Raises:
        UserError: there are no metrics, or a file is damaged.
    """
    data = load_run(run_dir)
    experiment = data.settings.get("experiment")
    name = experiment.get("name") if isinstance(experiment, dict) else None
    packages = data.versions.get("packages") or {}
    total, last = data.total_steps, max(data.rows, default=0)
    return template("report.html.j2").render(
        name=str(name or run_dir.path.absolute().name),
        directory=str(run_dir.path),
        # Without a known end nothing can be said.
        unfinished=total is not None and last < total,
        ended={"failed": ": it failed", "interrupted": ": it was interrupted"}.get(
            str(data.outcome.get("outcome")), ": it was stopped, or is still going on"
        ),
        facts=summarize(data),
        notes=data.notes,
        charts=_charts(data) + _length_charts(data),
        timelines=[picture(row) for row in choose_rows(data.spans)],
        samples=[replace(group, items=group.items[:_SHOWN_SAMPLES]) for group in data.samples],
        versions={key: packages[key] for key in _KEY_PACKAGES if key in packages},
        machine={key: data.versions.get(key) for key in ("python", "platform", "cpus", "gpus", "git_commit")},
        settings=data.settings_text,
        table=[(name, describe(name), _latest(data, name)) for name in data.names],
    )


def _charts(data: RunData) -> list[dict[str, str]]:
    """The curves of the table's metrics in its order, then of whatever else the run has written."""
    apart = ("time/", _STALENESS)
    names = [name for name in data.names if not name.startswith(apart) and data.values(name)]
    order = {name: place for place, name in enumerate(METRICS)}
    known = [(metric, name) for name in names if (metric := find_metric(name)) is not None]
    known.sort(key=lambda pair: order[pair[0].name])
    curves: dict[str, list[tuple[Metric, str]]] = {}
    for metric, name in known:
        curves.setdefault(metric.title or name, []).append((metric, name))
    # Metrics without a title of their own come after those with one.
    titled = sorted(curves.items(), key=lambda item: not item[1][0][0].title)
    done = [_chart(data, title, [name for _, name in pairs], pairs[0][0]) for title, pairs in titled]
    done += [_chart(data, name, [name]) for name in names if find_metric(name) is None]
    first = [drawn for drawn in (_time_chart(data), _staleness_chart(data)) if drawn]
    place = min(2, len(done))
    return [*done[:place], *first, *_distribution_charts(data), *done[place:]]


def _chart(data: RunData, title: str, names: list[str], metric: Metric | None = None) -> dict[str, str]:
    smooth, percent = (metric.smooth, metric.percent) if metric is not None else (True, False)
    series = {_label(name): data.points(name) for name in names}
    svg = line_chart(title, series, _span(data), smooth=smooth, percent=percent)
    return {"title": title, "caption": _caption(data, metric, len(names)), "svg": Markup(svg)}


def _caption(data: RunData, metric: Metric | None, curves: int) -> str:
    if metric is None:
        return ""
    if metric.name == "train/loss" and data.values("reward/mean"):
        return _BESIDE_A_REWARD
    if metric.caption or curves > 1:
        return metric.caption
    text = f"{metric.meaning}, in {metric.unit}" if metric.unit else metric.meaning
    return f"{text[:1].upper()}{text[1:]}."


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


def _staleness_chart(data: RunData) -> dict[str, str] | None:
    """Shares of the trained tokens by how many publications old they were."""
    names = [name for name in data.names if name.startswith(_STALENESS) and data.values(name)]
    if not names:
        return None
    names.sort(key=lambda name: (len(name), name))  # by number
    steps = [step for step, row in data.rows.items() if any(row.get(name) is not None for name in names)]
    parts = {name.removeprefix(_STALENESS): [data.rows[step].get(name) or 0.0 for step in steps] for name in names}
    means = ", ".join(f"{label}: {sum(shares) / len(steps):.1%}" for label, shares in parts.items())
    title = "Staleness of the trained tokens"
    return {
        "title": title,
        "caption": f"Share of tokens by publications since they were sampled. Mean over the steps: {means}.",
        "svg": Markup(stacked_chart(title, steps, parts, _span(data), percent=True)),
    }


def _distribution_charts(data: RunData) -> list[dict[str, str]]:
    """Lengths and entropies of the responses of each step."""
    done = []
    for name, by_step in data.distributions.items():
        title, caption = TITLES[name]
        done.append({"title": title, "caption": caption, "svg": Markup(band_chart(title, by_step, _span(data)))})
    return done


def _length_charts(data: RunData) -> list[dict[str, str]]:
    """How long the prompts, and the given responses, of the training data are."""
    done = []
    for name, found in data.lengths.items():
        title = f"Lengths of the training {name}"
        caption = f"Tokens; {found['total']:,} in all, mean {found['mean']:,}, longest {found['longest']:,}."
        svg = bar_chart(title, found["start"], found["width"], found["counts"])
        done.append({"title": title, "caption": caption, "svg": Markup(svg)})
    return done


def _span(data: RunData) -> tuple[int, int]:
    return min(data.rows), max(data.rows)


def _label(name: str) -> str:
    if name.startswith("eval/"):
        known = find_metric(name)
        several = known is not None and known.name.endswith("<k>")
        return f"{name.split('/')[1]} {_measure(name.split('/')[2])}" if several else name.split("/")[1]
    return _measure(name.split("/")[-1])


def _measure(name: str) -> str:
    """The last part of a metric's name, as people write it: `pass@4`."""
    return re.sub(r"_at_(\d+)$", r"@\1", name).replace("_", " ")


def _latest(data: RunData, name: str) -> str:
    value = data.points(name)[-1][1]
    return "not finite" if value is None else f"{value:,.6g}"


def _visible(value: object) -> str:
    """Control characters as their code: a browser would drop them, and lone surrogates are no UTF-8."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", str(value))
