"""Pictures of steps: what each process was at, as inline SVG and as a table.

Invariant: what is drawn is what spans.jsonl says, one row of the picture a process; where processes are too many for
that, rows touch, and each still has its place. Waiting is blank.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pentad.record.drawing import GRID, PALETTE, STYLE, to_svg
from pentad.record.phases import ASLEEP, CRITIC, ENGINE, PHASES, REFERENCE, TRAINER, find_phase
from pentad.record.spans import Lane, Row, ranks_text

# Processes that have a row with a gap around it and a label of their own.
_FEW = 16
# Different rows in a picture; of more, some are left out.
_MOST = 96
_ROW_INCHES, _HIGHEST_INCHES = 0.19, 3.4
_SHORT = {ENGINE: "engine", TRAINER: "trainer", REFERENCE: "reference", CRITIC: "critic"}


@dataclass(frozen=True)
class Picture:
    """A step as the page shows it.

    Attributes:
        phases: of the table, in its columns' order; the last column is waiting.
        rows: of the table: who, and seconds of each phase.
    """

    title: str
    caption: str
    svg: Markup
    phases: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def choose_rows(rows: Sequence[Row]) -> list[Row]:
    """The first step, the one of median length, the last one, and what followed on the last step that something did."""
    steps = [row for row in rows if not row.after]
    if not steps:
        return []
    # The first step is often slow; it is shown as it is, and does not decide which one is usual.
    later = sorted(steps[1:-1], key=lambda row: row.seconds)
    chosen = {row.step: row for row in (steps[0], *later[len(later) // 2 :][:1], steps[-1])}
    after = [row for row in rows if row.after]
    return [*(chosen[step] for step in sorted(chosen)), *after[-1:]]


def picture(row: Row) -> Picture:
    """A step as picture and table."""
    lanes = _worth_showing(row)
    many = sum(max(1, len(lane.ranks)) for lane in lanes) > _FEW
    caption = ""
    if not many:
        lanes = [
            replace(lane, ranks=ranks) for lane in lanes for ranks in ([(rank,) for rank in lane.ranks] or [lane.ranks])
        ]
    elif len(lanes) > _MOST:
        caption = f"A part of the {len(lanes)} different lanes is shown."
        lanes = _fewer(lanes)
    name = f"After step {row.step} (evaluation)" if row.after else f"Step {row.step}"
    title = f"{name}: {row.seconds:.3g} s"
    used = {find_phase(name).label for lane in lanes for name, _, _ in lane.parts if name != ASLEEP}
    labels = [phase.label for phase in PHASES if phase.label in used]
    table = tuple((_name(lane), _cells(lane, labels, row.seconds)) for lane in lanes)
    return Picture(title, caption, Markup(timeline_svg(title, lanes, row.seconds)), tuple(labels), table)


def timeline_svg(title: str, lanes: Sequence[Lane], seconds: float) -> str:
    """The lanes one below the other, as an `<svg>` element.

    Args:
        title: what a screen reader says.
        seconds: of the axis.
    """
    # What is one of its kind stays visible beside hundreds of ranks.
    alone = max(1, sum(len(lane.ranks) for lane in lanes) // 24)
    sizes = [len(lane.ranks) or alone for lane in lanes]
    separate = len(lanes) <= _FEW and all(len(lane.ranks) <= 1 for lane in lanes)
    total = len(lanes) if separate else sum(sizes)
    height = min(_ROW_INCHES * total, _HIGHEST_INCHES)
    with matplotlib.rc_context({**STYLE, "font.size": 10.5, "legend.fontsize": 10}):
        figure = Figure(figsize=(5.4, max(height, 4 * _ROW_INCHES) + 0.95), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        top = 0.0
        for lane, size in zip(lanes, sizes, strict=True):
            inner = 0.76 if separate else size
            _draw(axes, lane, top, inner)
            top += 1 if separate else size
        _label(axes, lanes, sizes, separate=separate)
        axes.set_xlim(0, seconds or 1.0)
        axes.set_ylim(max(top, 1), 0)
        axes.set_xlabel("seconds")
        axes.grid(visible=False, axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        used = {find_phase(name) for lane in lanes for name, _, _ in lane.parts}
        shown = [Patch(facecolor=PALETTE[p.color - 1], label=p.label) for p in PHASES if p in used and p.color]
        if shown:
            figure.legend(handles=shown, loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.0)
        return to_svg(figure, title)


def _draw(axes: Axes, lane: Lane, top: float, height: float) -> None:
    """One row; sleep is a thin line."""
    by_color: dict[int, list[tuple[float, float]]] = {}
    for name, begin, end in lane.parts:
        by_color.setdefault(find_phase(name).color, []).append((begin, end - begin))
    for color, parts in by_color.items():
        if color:
            axes.broken_barh(parts, (top, height), facecolors=PALETTE[color - 1], linewidth=0)
        else:
            axes.broken_barh(parts, (top + 0.45 * height, 0.1 * height), facecolors=GRID, linewidth=0)


def _label(axes: Axes, lanes: Sequence[Lane], sizes: Sequence[int], *, separate: bool) -> None:
    """A label of each row, or of each kind where rows touch, with a line between kinds."""
    if separate:
        axes.set_yticks([place + 0.38 for place in range(len(lanes))], [_name(lane, short=True) for lane in lanes])
        return
    counts: Counter[str] = Counter()
    grouped: Counter[str] = Counter()
    for lane, size in zip(lanes, sizes, strict=True):
        counts[lane.who] += size
        grouped[lane.who] += len(lane.ranks)
    ticks: list[tuple[float, str]] = []
    top = 0.0
    for kind, count in counts.items():
        ticks.append((top + count / 2, _SHORT.get(kind, kind) + (f"\n({grouped[kind]})" if grouped[kind] > 1 else "")))
        top += count
        axes.axhline(top, color=GRID, linewidth=0.8)
    axes.set_yticks([place for place, _ in ticks], [text for _, text in ticks])


def _worth_showing(row: Row) -> list[Lane]:
    """The lanes without those of the driver and the like that did nothing; lanes of a kind are together."""
    lanes = [lane for lane in row.lanes if lane.parts or lane.who in _SHORT]
    kinds = list(dict.fromkeys(lane.who for lane in lanes))
    return sorted(lanes, key=lambda lane: (kinds.index(lane.who), lane.ranks[:1]))


def _fewer(lanes: Sequence[Lane]) -> list[Lane]:
    """Lanes of each kind, evenly spread, at least one."""
    by_kind: dict[str, list[Lane]] = {}
    for lane in lanes:
        by_kind.setdefault(lane.who, []).append(lane)
    each = max(1, _MOST // len(by_kind))
    return [lane for mine in by_kind.values() for lane in mine[:: -(-len(mine) // each)]]


def _name(lane: Lane, *, short: bool = False) -> str:
    kind = _SHORT.get(lane.who, lane.who) if short else lane.who
    return f"{kind} {ranks_text(lane.ranks)}" if lane.ranks else kind


def _cells(lane: Lane, labels: Sequence[str], seconds: float) -> tuple[str, ...]:
    spent: defaultdict[str, float] = defaultdict(float)
    for name, begin, end in lane.parts:
        if name != ASLEEP:
            spent[find_phase(name).label] += end - begin
    waiting = max(0.0, seconds - sum(spent.values()))
    return (*(f"{spent[label]:.3g}" if spent[label] else "" for label in labels), f"{waiting:.3g}")
