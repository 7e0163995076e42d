"""Curves as inline SVG that take their colours and fonts from the page around them.

Invariant: a chart draws every finite value that it is given or a mean of neighbours, never a guess: a value that
is missing or not finite is a gap.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pentad.record.drawing import SERIES, STYLE, to_svg

_FEW = 40  # so many points are marked one by one
_MOST = 300  # bars of a stacked chart; more steps share a bar

Points = Sequence[tuple[int, float | None]]


def line_chart(
    title: str, series: Mapping[str, Points], span: tuple[int, int], *, smooth: bool = False, percent: bool = False
) -> str:
    """Lines over steps, as an `<svg>` element.

    Args:
        title: what a screen reader says.
        series: label -> (step, value), in order of steps; the label is shown when there is more than one.
        span: first and last step of the axis.
        smooth: draw the values faintly and their smoothed course over them.
        percent: the values are fractions.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(span)
        for i, (label, points) in enumerate(series.items()):
            color = SERIES[i % len(SERIES)]
            steps = [step for step, _ in points]
            values = [math.nan if value is None else value for _, value in points]
            faint = smooth and len(values) > 10
            axes.plot(
                steps,
                values,
                color=color,
                linewidth=1.0 if faint else 1.8,
                alpha=0.35 if faint else 1.0,
                marker="o" if len(values) <= _FEW and not faint else None,
                markersize=3.5,
                label=None if faint else label,
            )
            if faint:
                axes.plot(steps, smoothed(values), color=color, linewidth=1.8, label=label)
        if percent:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if len(series) > 1:
            axes.legend(loc="best")
        return to_svg(figure, title)


def stacked_chart(
    title: str,
    steps: Sequence[int],
    parts: Mapping[str, Sequence[float]],
    span: tuple[int, int],
    *,
    percent: bool = False,
) -> str:
    """Stacked bars over steps, as an `<svg>` element.

    Args:
        title: what a screen reader says.
        steps: `[N]`, rising.
        parts: label -> `[N]` finite values from 0; the first is at the bottom.
        span: first and last step of the axis.
        percent: the values are fractions.
    """
    size = math.ceil(len(steps) / _MOST) if steps else 1
    cuts = range(0, len(steps), size)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(span)
        at = [_mean(steps[cut : cut + size]) for cut in cuts]
        gap = 0.2 if len(at) <= _FEW else 0.0  # thin gaps between thin bars flicker
        width = (1 - gap) * min((b - a for a, b in itertools.pairwise(at)), default=1.0)
        bottom = [0.0] * len(at)
        for i, (label, values) in enumerate(parts.items()):
            heights = [_mean(values[cut : cut + size]) for cut in cuts]
            axes.bar(at, heights, width=width, bottom=bottom, color=SERIES[i % len(SERIES)], label=label)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.grid(visible=False, axis="x")
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(0, 1.25 * max(bottom, default=1.0) or 1.0)  # room for the legend
        axes.legend(loc="upper right", ncols=min(len(parts), 5), columnspacing=1.0, handlelength=1.0)
        return to_svg(figure, title)


def band_chart(title: str, quantiles: Mapping[int, Sequence[float]], span: tuple[int, int]) -> str:
    """Nested bands around a median over steps, as an `<svg>` element.

    Args:
        title: what a screen reader says.
        quantiles: step -> values, rising, an odd number; the one in the middle is the median, the pairs around it are
            the edges of the bands.
        span: first and last step of the axis.
    """
    steps = sorted(quantiles)
    size = math.ceil(len(steps) / _MOST) if steps else 1
    cuts = [steps[start : start + size] for start in range(0, len(steps), size)]
    at = [_mean(cut) for cut in cuts]
    edges = np.array([np.mean([quantiles[step] for step in cut], axis=0) for cut in cuts]).T
    middle = len(edges) // 2
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(span)
        for band in range(middle):
            shade = 0.12 + 0.14 * band
            axes.fill_between(at, edges[band], edges[-1 - band], color=SERIES[0], alpha=shade, linewidth=0)
        marker = "o" if len(at) <= _FEW else None
        axes.plot(at, edges[middle], color=SERIES[0], linewidth=1.8, marker=marker, markersize=3.5)
        return to_svg(figure, title)


def bar_chart(title: str, start: int, width: int, counts: Sequence[int]) -> str:
    """A histogram, as an `<svg>` element.

    Args:
        title: what a screen reader says.
        start: lower end of the first bin.
        width: of each bin.
        counts: `[N]`, of each bin.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes((start, start + width * len(counts)))
        edges = [start + width * i for i in range(len(counts))]
        axes.bar(edges, counts, width=0.9 * width, align="edge", color=SERIES[0])
        axes.grid(visible=False, axis="x")
        return to_svg(figure, title)


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value's neighbours `[N] -> [N]`, weighted by a Gaussian over 1/40 of the length: it does not lag.

    A NaN stays NaN and has no weight.
    """
    sigma = max(1.0, len(values) / 40)
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    raw = np.asarray(values, dtype=np.float64)
    known = np.isfinite(raw)
    weighted = np.convolve(np.where(known, raw, 0.0), kernel)[reach:-reach]
    weights = np.convolve(known.astype(np.float64), kernel)[reach:-reach]
    return np.where(known, weighted / np.where(known, weights, 1.0), math.nan).tolist()


def _axes(span: tuple[int, int]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 2.5), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    margin = max(0.6, 0.02 * (span[1] - span[0]))
    axes.set_xlim(span[0] - margin, span[1] + margin)
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
