"""Runs side by side: one HTML page with each metric of all of them in one picture.

Invariant: it is made from the files of the runs alone, which stay as they are; nothing that a user wrote is taken for
markup.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from pentad.errors import UserError
from pentad.record.charts import line_chart
from pentad.record.metric_table import METRICS, describe, find_metric
from pentad.record.report import template
from pentad.record.run_data import RunData, load_run
from pentad.record.run_list import different_settings, run_name

# Characters of a label.
_LONGEST = 36
_BOOKKEEPING = ("time/", "perf/", "util/", "data/", "save/", "staleness/share_")


def write_comparison(paths: Sequence[Path], target: Path) -> dict[str, tuple[str, ...]]:
    """Write the page.

    Args:
        paths: directories of two or more runs.
        target: the page; one that is there is replaced.

    Returns:
        the settings that differ: name -> the value of each run.

    Raises:
        UserError: a run has no metrics, or the page cannot be written.
    """
    runs = [load_run(path) for path in paths]
    labels = run_labels(runs, paths)
    differences = different_settings(runs)
    names = list(dict.fromkeys(name for data in runs for name in data.names))
    html = template("compare.html.j2").render(
        runs=[{"label": label, "path": str(path)} for label, path in zip(labels, paths, strict=True)],
        differences=read_by_all(differences),
        others={name: values for name, values in differences.items() if "" in values},
        charts=_charts(runs, labels, names),
        table=[(name, tuple(_latest(data, name) for data in runs)) for name in names],
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {target} cannot be written: {error.strerror}", "give another file") from None
    return differences


def read_by_all(differences: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Those of the settings that differ which every run has."""
    return {name: values for name, values in differences.items() if "" not in values}


def run_labels(runs: Sequence[RunData], paths: Sequence[Path]) -> list[str]:
    """What tells the runs apart: their names, or their directories where names are the same."""
    names = [run_name(data, path) for data, path in zip(runs, paths, strict=True)]
    for labels in (names, [path.absolute().name for path in paths]):
        # A legend has no room for the whole of a long name.
        if len(set(short := [_shortened(label) for label in labels])) == len(labels):
            return short
    return [str(path) for path in paths]


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST // 2]}…{label[-_LONGEST // 2 :]}"


def _charts(runs: Sequence[RunData], labels: Sequence[str], names: Sequence[str]) -> list[dict[str, str]]:
    """A picture of each metric that at least two of the runs have, the metrics of learning first."""
    order = {name: place for place, name in enumerate(METRICS)}
    shared = [name for name in names if sum(bool(data.values(name)) for data in runs) > 1]
    shared.sort(key=lambda name: order.get(getattr(find_metric(name), "name", ""), len(order)))
    shared.sort(key=lambda name: name.startswith(_BOOKKEEPING))
    steps = [step for data in runs for step in data.rows]
    done = []
    for name in shared:
        metric = find_metric(name)
        series = {label: data.points(name) for label, data in zip(labels, runs, strict=True) if data.values(name)}
        smooth, percent = (metric.smooth, metric.percent) if metric is not None else (True, False)
        svg = line_chart(name, series, (min(steps), max(steps)), smooth=smooth, percent=percent)
        done.append({"title": name, "caption": describe(name), "svg": Markup(svg)})
    return done


def _latest(data: RunData, name: str) -> str:
    values = data.values(name)
    return f"{values[-1]:,.6g}" if values else ""
