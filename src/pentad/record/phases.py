"""Phases of a step as timelines show them.

Invariant: every name of a phase belongs to one of `PHASES`, unknown ones to the last.
"""

from dataclasses import dataclass

# What processes are called.
ENGINE, TRAINER, REWARDS, DRIVER = "rollout engine", "trainer rank", "rewards", "driver"
# Ranks of a model that has devices of its own.
REFERENCE, CRITIC = "reference rank", "critic rank"
# Phases that others ask for by name.
GENERATION, ASLEEP, SYNC = "generation", "asleep", "weight synchronisation"


@dataclass(frozen=True)
class Phase:
    """How a phase is shown.

    Attributes:
        label: in the legend.
        color: number of the page's series; 0 is not drawn.
    """

    label: str
    color: int


PHASES = (
    Phase("generation", 1),
    Phase("log-probs", 3),
    Phase("reference log-probs", 6),
    Phase("values", 7),
    Phase("training", 2),
    Phase("weights", 4),
    Phase("rewards", 8),
    Phase("evaluation", 9),
    Phase("saving", 10),
    Phase("asleep", 0),
    Phase("other", 5),
)
# Engines are paused and woken for nothing else.
_OF_SYNC = frozenset({SYNC, "pausing the engines", "waking the engines", "resuming the engines"})
_BY_LABEL = {phase.label: phase for phase in PHASES}


def find_phase(name: str) -> Phase:
    """How a phase is shown, by its name in a span."""
    if name in _OF_SYNC:
        return _BY_LABEL["weights"]
    if name.startswith("training"):
        return _BY_LABEL["training"]
    if name.endswith("values"):
        return _BY_LABEL["values"]
    return _BY_LABEL.get(name, _BY_LABEL["other"])


def is_computing(name: str) -> bool:
    """Whether trainer ranks compute with the model in it: log-probs, values and training, of whatever role."""
    return name.startswith("training") or name.endswith(("log-probs", "values"))


def kind_of(who: str) -> str:
    """The kind of a process: its name without the number."""
    head, _, tail = who.rpartition(" ")
    return head if head and tail.isdigit() else who


def rank_of(who: str) -> int | None:
    """The number of a process among those of its kind; None where it has none."""
    head, _, tail = who.rpartition(" ")
    return int(tail) if head and tail.isdigit() else None
