"""How the report's pictures are drawn: one style, as inline SVG that takes its colours and fonts from the page.

Invariant: every colour of a picture is a variable of the page, which knows whether it is light or dark.
"""

import io
from html import escape
from typing import Any

from matplotlib.figure import Figure

# Drawn in these colours, which then become the page's CSS variables; the page knows whether it is light or dark.
PALETTE = tuple(f"#0000f{i:x}" for i in range(1, 11))
# Of curves; pictures of phases use all of the palette.
SERIES = PALETTE[:6]
INK, GRID = "#0000a1", "#0000a2"
_VARIABLES = {color: f"var(--series-{i})" for i, color in enumerate(PALETTE, start=1)}
_VARIABLES |= {INK: "var(--ink-soft)", GRID: "var(--grid)"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pentad",  # the same data gives the same file
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` element; `title` is what a screen reader says."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
