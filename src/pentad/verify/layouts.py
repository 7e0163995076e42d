"""Which layouts of a model are worth verifying: every legal combination of small sizes.

Invariant: every layout that is listed is legal for the model; the same arguments give the same list.
"""

from collections.abc import Iterator
from itertools import product

from pentad.families.facts import ModelFacts
from pentad.layout import Layout
from pentad.layout.cluster_checks import check_projections
from pentad.layout.validate import Problem, check_layout

# One dimension at a size above the others, where more goes wrong: more ranks than key/value heads, middle stages.
_LARGE = (Layout(tensor=4), Layout(pipeline=4), Layout(context=4), Layout(data=4), Layout(data=4, expert=4))


def problems(facts: ModelFacts, layout: Layout) -> list[Problem]:
    """All that keeps a model from a layout."""
    return [*check_layout(facts, layout), *check_projections(facts, layout)]


def small_layouts(facts: ModelFacts, most_ranks: int) -> list[Layout]:
    """Sizes 1 and 2 of every dimension, and each of t, p, c, d and e at 4, in order of their ranks.

    One process, which all are compared with, is left out.
    """
    found = dict.fromkeys((*_combinations(), *_LARGE))
    legal = [layout for layout in found if 1 < layout.world <= most_ranks and not problems(facts, layout)]
    return sorted(legal, key=lambda layout: layout.world)


def _combinations() -> Iterator[Layout]:
    for sizes in product((1, 2), repeat=7):
        try:
            yield Layout(*sizes)
        except ValueError:
            continue
