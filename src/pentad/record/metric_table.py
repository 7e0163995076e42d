"""Every metric: its name, what it is, its unit, how it is averaged, and how terminal and report show it.

Invariant: this is the only table of metrics. Terminal, report and docs/metrics.md are made from it, and a run writes no
metric that is not in it (an algorithm of the user's may add its own, which are shown without a description).
"""

import re

from pentad.record.metric import Metric
from pentad.record.metric_rows import BOOKKEEPING, LEARNING

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*LEARNING, *BOOKKEEPING)}


def find_metric(name: str) -> Metric | None:
    """The row of a metric by the name that stands in metrics.jsonl; None for one that is not in the table."""
    of_eval = re.sub(r"^eval/[^/]+/", "eval/<name>/", name)
    if (known := METRICS.get(re.sub(r"_at_\d+$", "_at_<k>", of_eval))) is not None:
        return known
    name = re.sub(r"^staleness/share_\d+$", "staleness/share_<k>", name)
    return METRICS.get(re.sub(r"^reward/[^/]+$", "reward/<part>", name))


def describe(name: str) -> str:
    """What the table says of a metric, in one line; empty for a name that is not in it."""
    if (metric := find_metric(name)) is None:
        return ""
    unit = f" ({metric.unit})" if metric.unit else ""
    return f"{metric.meaning}{unit}; {metric.average}"


def metrics_text() -> str:
    """The table for the terminal."""
    return "".join(f"{name}\n    {describe(name)}\n" for name in METRICS)


def metrics_markdown() -> str:
    """The reference page, docs/metrics.md."""
    rows = (
        " | ".join((f"`{metric.name}`", metric.meaning, metric.unit or "-", metric.average)).replace("||", "\\|\\|")
        for metric in METRICS.values()
    )
    table = _PREFACE + "".join(f"| {row} |\n" for row in rows)
    return re.sub(r"<(name|k|part)>", r"\\<\1>", table)


_PREFACE = """\
# Metrics

<!-- Written by `make docs`; a test compares it with the table in the code. -->

Each step of a run is one or more lines of `metrics.jsonl`: `{"step": 3, "reward/mean": 0.41, ...}`. Step 0 is the model
before training. A value that is not finite is `null`. A count or a time is that of one step. An algorithm of your own
may write further metrics; they are shown under their names.

| metric | meaning | unit | value of a step |
|---|---|---|---|
"""
